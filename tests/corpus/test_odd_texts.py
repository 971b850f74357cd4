"""Captions in other encodings, tables that are not what they seem, and made-up files of every format."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_distill.corpus.captions import read_captions
from clip_distill.corpus.decoding import encoding_of, lines_of
from clip_distill.corpus.report import Skips
from clip_distill.corpus.translations import read_pairs
from clip_distill.system.errors import Error

LINES = ["a dog on grass", "两只狗在雪地里", "ein Hund läuft", "a café, seen at night", "the red car"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def read(path: Path, column: str | None = None) -> tuple[list[str], Skips]:
    skips = Skips()
    return [text for text, _ in read_captions(str(path), column, None, skips)], skips


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("extension", [".txt", ".tsv", ".csv", ".jsonl", ".json", ".tar"])
def test_a_text_is_read_in_whatever_unicode_it_is_written(extension: str, encoding: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"c{extension}", [*LINES, "last"]
    text = "".join(f"{line}\n" for line in rows)
    if extension == ".tsv":
        text = "".join(f"{line}\thttp://example.org/{number}.jpg\n" for number, line in enumerate(rows))
    elif extension == ".csv":
        text = "caption,url\n" + "".join(f'"{line}",http://example.org/0.jpg\n' for line in rows)
    elif extension == ".jsonl":
        text = "".join(json.dumps({"caption": line}, ensure_ascii=False) + "\n" for line in rows)
    elif extension == ".json":
        images = [{"id": 7, "file_name": "a.jpg"}]
        annotations = [{"image_id": 7, "caption": line} for line in rows]
        text = json.dumps({"images": images, "annotations": annotations}, ensure_ascii=False)
    if extension == ".tar":
        with tarfile.open(path, "w") as tar:
            for number, line in enumerate(rows):
                member = tarfile.TarInfo(f"{number:03}.txt")
                content = line.encode(encoding)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if encoding in ("utf-16-le", "utf-16-be"):
            pytest.skip("a caption in Chinese alone, without a mark, is told from nothing")
    else:
        path.write_bytes(text.encode(encoding))
    found, skips = read(path)
    assert found == rows
    assert not skips.counts


@pytest.mark.parametrize("extension", [".txt", ".tsv"])
def test_another_encoding_is_refused_with_its_line(extension: str, tmp_path: Path) -> None:
    lines = ["plain"] * 3 + [f"Straße {number}" for number in range(20)]
    (tmp_path / f"c{extension}").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(
        Error, match=r"c\.(txt|tsv): expected UTF-8 or UTF-16, found 20 of 23 .* the first line 4\. .*iconv"
    ):
        read(tmp_path / f"c{extension}")


def test_a_damaged_line_and_a_nul_are_counted(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"one\n" * 50 + b"\xff\n" + b"a\0b\n" * 2)
    found, skips = read(tmp_path / "c.txt")
    assert found == ["one"] * 50
    assert skips.counts == {"line is not UTF-8": 1, "caption holds a NUL": 2}


def test_addresses_in_the_captions_place_are_refused_and_the_right_column_named(tmp_path: Path) -> None:
    rows = [f"http://example.org/{number}.jpg\ta dog and cat number {number}" for number in range(30)]
    (tmp_path / "cc12m.tsv").write_text("\n".join(rows))
    with pytest.raises(Error, match=r"most of the first 30 are no text, such as 'http.*: --sources.caption_column 2"):
        read(tmp_path / "cc12m.tsv")
    found, _ = read(tmp_path / "cc12m.tsv", "2")
    assert found[0] == "a dog and cat number 0"
    assert len(read(tmp_path / "cc12m.tsv", "1")[0]) == 30  # who names it means it


@pytest.mark.parametrize("values", [[f"{n:064x}" for n in range(20)], [str(n) for n in range(20)], ["a/b.jpg"] * 20])
@pytest.mark.parametrize("extension", [".csv", ".parquet", ".jsonl"])
def test_hashes_numbers_and_file_names_are_no_captions(values: list[str], extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{extension}"
    if extension == ".csv":
        path.write_text("text,note\n" + "".join(f"{value},a brown dog\n" for value in values))
    elif extension == ".parquet":
        pq.write_table(pa.table({"text": values, "note": ["a brown dog"] * 20}), path)
    else:
        path.write_text("".join(json.dumps({"text": value, "note": "a brown dog"}) + "\n" for value in values))
    with pytest.raises(Error, match="expected captions, found that most") as error:
        read(path)
    assert extension == ".jsonl" or "column 2 looks like captions" in str(error.value)


def test_a_tab_within_a_caption_is_counted(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("a dog\thttp://x/1\na cat\tand a dog\thttp://x/2\na cow\thttp://x/3\n")
    found, skips = read(tmp_path / "c.tsv")
    assert found == ["a dog", "a cow"]
    assert skips.examples == {
        "line with more columns than the first: a tab in its caption?": f"{tmp_path}/c.tsv, line 2"
    }


@pytest.mark.parametrize("place", ["caption", "url"])
def test_rows_that_an_open_quote_swallows_are_counted(place: str, tmp_path: Path) -> None:
    rows = [f"a dog number {number},http://example.org/{number}" for number in range(12)]
    rows[3] = rows[3].replace("a dog", '"a dog') if place == "caption" else rows[3].replace("http", '"http')
    rows[7] += '"' if place == "url" else ""
    rows[7] = rows[7] if place == "url" else rows[7].replace("number 7", 'number 7"')
    (tmp_path / "c.csv").write_text("caption,url\n" + "\n".join(rows) + "\n")
    found, skips = read(tmp_path / "c.csv")
    assert len(found) + sum(skips.counts.values()) == 12
    assert len(found) == 7
    (tmp_path / "open.csv").write_text("caption,url\n" + "\n".join(rows[:7]) + "\n")
    found, skips = read(tmp_path / "open.csv")
    assert len(found) + sum(skips.counts.values()) == 7


def test_a_caption_over_several_lines_is_kept(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('caption,url\n"a dog,\nseen from above",x\na cat,y\n')
    assert read(tmp_path / "c.csv")[0] == ["a dog,\nseen from above", "a cat"]


def test_captions_of_an_image_id_that_two_photos_have_are_dropped_and_told(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}, {"id": 2, "file_name": "c.jpg"}]
    images.append({"id": 2, "file_name": "c.jpg"})
    annotations = [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    skips = Skips()
    assert list(read_captions(str(tmp_path / "c.json"), None, None, skips)) == [("a cat", "c.jpg")]
    assert list(skips.counts) == ["annotation of an image id that several photos have"]


@given(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=60))
def test_an_encoding_with_a_mark_is_always_known(text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert text.encode(encoding).decode(encoding_of(text.encode(encoding))) == text


CELLS = st.one_of(
    st.sampled_from(
        ['"', "'", "\t", ",", "\n", "\r\n", "\0", "\\", "{", "}", "[", "]", ":", "null", "caption", "text"]
    ),
    st.text(max_size=12),
)
MADE = st.one_of(
    st.binary(max_size=300),
    st.lists(CELLS, max_size=40).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")),
    st.lists(CELLS, max_size=40).map(lambda parts: ("caption,url\n" + "".join(parts)).encode("utf-8", "ignore")),
    st.lists(CELLS, max_size=20).map(lambda parts: "".join(parts).encode("utf-16", "ignore")),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=9)
    .flatmap(lambda x: st.sampled_from([{"images": x, "annotations": x}, {"images": [x], "annotations": [x]}, x]))
    .map(lambda value: json.dumps(value).encode()),
)
FORMATS = ["txt", "tsv", "csv", "json", "jsonl", "parquet", "arrow", "tar"]
FUZZ = settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("extension", FORMATS)
@FUZZ
@given(MADE)
def test_whatever_a_file_holds_it_is_read_skipped_or_refused_by_name(
    extension: str, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / f"made.{extension}"
    path.write_bytes(content)
    try:
        found, skips = read(path)
    except Error as error:
        assert "made." in str(error)
        return
    assert all(caption.strip() and "\0" not in caption for caption in found)
    if extension == "txt":
        assert len(found) + sum(skips.counts.values()) == sum(
            1 for _ in lines_of(str(path), Skips())
        ) + skips.counts.get("line is not UTF-8", 0)


@pytest.mark.parametrize("extension", ["tsv", "csv", "parquet"])
@FUZZ
@given(MADE)
def test_made_up_translations_are_read_or_refused_by_name(extension: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"made.{extension}").write_bytes(content)
    try:
        read_pairs(str(tmp_path / f"made.{extension}"), (1, 2), Skips())
    except Error as error:
        assert "made." in str(error)


@pytest.mark.parametrize("extension", ["parquet", "arrow", "tar"])
@FUZZ
@given(st.data())
def test_a_changed_file_of_a_binary_format_is_read_or_refused_by_name(
    extension: str, tmp_path: Path, data: st.DataObject
) -> None:
    path, table = tmp_path / f"made.{extension}", pa.table({"caption": LINES * 4, "url": LINES * 4})
    if extension == "parquet":
        pq.write_table(table, path)
    elif extension == "arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        with tarfile.open(path, "w") as tar:
            for number, line in enumerate(LINES):
                member = tarfile.TarInfo(f"{number}.txt")
                member.size = len(line.encode())
                tar.addfile(member, io.BytesIO(line.encode()))
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=5)
    ):
        content[place] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read(path)
    except Error as error:
        assert "made." in str(error)


def test_of_files_of_one_name_in_a_tar_the_first_counts_and_the_others_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, text in (("a.txt", "one"), ("a.txt", "two"), ("b.txt", "three"), ("a.txt", "four")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    found, skips = read(tmp_path / "s.tar")
    assert found == ["one", "three"]
    assert skips.counts == {"second file of one name in a tar": 1, "key that another sample of the tar has": 1}
