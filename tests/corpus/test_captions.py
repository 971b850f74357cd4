from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_distill.corpus.captions import read_captions
from clip_distill.corpus.pairs import find_photos
from clip_distill.corpus.report import Skips


def read(path: Path, caption_column: str | None = None, image_column: str | None = None) -> tuple[list[Any], Skips]:
    skips = Skips()
    return list(read_captions(str(path), caption_column, image_column, skips)), skips


def coco(path: Path, images: list[Any], annotations: list[Any]) -> Path:
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_coco_gives_every_caption_of_every_photo(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": "x", "file_name": "sub/狗.jpg"}]
    annotations = [
        {"image_id": 1, "caption": "  a dog \n"},
        {"image_id": 1, "caption": 'a "big" dog'},
        {"image_id": "x", "caption": "一只狗"},
        {"image_id": 1, "caption": "a dog"},
    ]
    rows, skips = read(coco(tmp_path / "c.json", images, annotations))
    assert rows == [("a dog", "a.jpg"), ('a "big" dog', "a.jpg"), ("一只狗", "sub/狗.jpg"), ("a dog", "a.jpg")]
    assert skips.counts == {}


def test_unusable_captions_are_counted_by_reason(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2}]
    values: list[Any] = [" ", "", 7, None, "\ud83d", "good"]
    annotations: list[Any] = [{"image_id": 1, "caption": value} for value in values]
    annotations += [
        {"image_id": 99, "caption": "lost"},
        {"image_id": 1},
        "no annotation",
        {"image_id": [1], "caption": "x"},
    ]
    rows, skips = read(coco(tmp_path / "c.json", images, annotations))
    assert rows == [("good", "a.jpg")]
    assert skips.counts == {
        "empty caption": 2,
        "caption is not a string": 3,
        "caption is not valid Unicode": 1,
        "annotation of an image that the file does not list": 3,
        "image entry without id and file_name": 1,
    }
    assert "image_id 99" in skips.examples["annotation of an image that the file does not list"]
    assert "skipped 3: caption is not a string (first:" in "\n".join(skips.lines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [], ', "broken JSON"),
        ("\udcff", "line 1: expected UTF-8"),
        ("[]", "found list"),
        ('{"images": []}', "found 'images'"),
        ('{"images": [], "annotations": {}}', '"annotations": '),
        ("{}", "found no keys"),
    ],
)
def test_a_json_that_is_not_coco_is_an_error_naming_the_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match="c.json(: expected COCO captions|, line 1)") as error:
        read(tmp_path / "c.json")
    assert message in str(error.value)


def test_a_conceptual_captions_tsv_has_no_quoting(tmp_path: Path) -> None:
    lines = ['a sign says "stop', 'the "red" car', '"quoted"', " spaced ", "", "no url"]
    text = "\n".join(f"{line}\thttp://x/{number}.jpg" for number, line in enumerate(lines[:5])) + "\nno url\r\n"
    (tmp_path / "cc.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"caf\xe9\thttp://x\n")
    rows, skips = read(tmp_path / "cc.tsv")
    assert rows == [(line, None) for line in ['a sign says "stop', 'the "red" car', '"quoted"', "spaced", "no url"]]
    assert skips.counts == {"empty caption": 1, "line is not UTF-8": 1}


def test_tsv_columns_go_by_header_or_number(tmp_path: Path) -> None:
    (tmp_path / "h.tsv").write_text('file_name\tText\na.jpg\ta "dog\nshort\n')
    rows, skips = read(tmp_path / "h.tsv")
    assert rows == [('a "dog', "a.jpg")] and skips.counts == {"line with too few columns": 1}
    (tmp_path / "p.tsv").write_text("a dog\t一只狗\ta.jpg\n")
    assert read(tmp_path / "p.tsv", "2", "3")[0] == [("一只狗", "a.jpg")]
    (tmp_path / "own.tsv").write_text("en\tzh\na dog\t一只狗\n")
    assert read(tmp_path / "own.tsv", "zh")[0] == [("一只狗", None)]
    with pytest.raises(ValueError, match="expected a column 'zh'.*found 3 columns without names"):
        read(tmp_path / "p.tsv", "zh")


def test_a_first_line_that_cannot_be_read_does_not_hide_the_asked_column(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"caf\xe9\tx\n" + b"one\ttwo\n")
    rows, skips = read(tmp_path / "a.tsv", "2")
    assert rows == [("two", None)] and skips.counts == {"line is not UTF-8": 1}


def test_csv_is_quoted_and_nothing_in_it_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(
        '\ufeff"id\nnumber",caption,image\n1,"a ""big"" dog, running",a.jpg\n2,"two\nlines",b.jpg\n'
        "3,42,c.jpg\n4,NA,d.jpg\n5,,e.jpg\n6,x\n",
        encoding="utf-8",
    )
    rows, skips = read(tmp_path / "c.csv")
    expected = [('a "big" dog, running', "a.jpg"), ("two\nlines", "b.jpg"), ("42", "c.jpg"), ("NA", "d.jpg")]
    assert rows == expected
    assert skips.counts == {"empty caption": 1, "row with another number of columns than the header": 1}


def test_csv_without_a_known_column_says_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"c.csv: expected a column called caption, text, title, found \['a', 'b'\]"):
        read(tmp_path / "c.csv")
    assert read(tmp_path / "c.csv", "b", "a")[0] == [("2", "1")]
    with pytest.raises(ValueError, match="--sources.image_column"):
        read(tmp_path / "c.csv", "b", "photo")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="an empty file"):
        read(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("caption\n")
    assert read(tmp_path / "header.csv")[0] == []
    (tmp_path / "latin.csv").write_bytes(b"caption\ncaf\xe9\n")
    with pytest.raises(ValueError, match="latin.csv: expected a CSV in UTF-8"):
        read(tmp_path / "latin.csv")


def test_parquet_of_strings_and_of_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"filepath": ["a.jpg", "b.jpg"], "title": ["x", None]}), tmp_path / "a.parquet")
    rows, skips = read(tmp_path / "a.parquet")
    assert rows == [("x", "a.jpg")] and skips.counts == {"caption is not a string": 1}
    pq.write_table(pa.table({"caption": [["x", "y"], []], "image": ["a.jpg", "b.jpg"]}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet")[0] == [("x", "a.jpg"), ("y", "a.jpg")]
    pq.write_table(pa.table({"caption": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="expected column 'caption' to hold text, found int64"):
        read(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="d.parquet: expected a parquet file"):
        read(tmp_path / "d.parquet")


def test_shards_give_txt_else_json(tmp_path: Path) -> None:
    members = {
        "000.jpg": b"",
        "000.json": b'{"caption": "from json"}',
        "000.txt": b"from txt\n",
        "001.json": b'{"caption": ["one", "two"]}',
        "002.json": b'{"url": "x"}',
        "003.txt": b"caf\xe9",
        "./sub/004.a.b/005.txt": "一只狗".encode(),
    }
    rows, skips = read(write_tar(tmp_path / "cc-000.tar", members))
    names = ["cc-000.tar/000", "cc-000.tar/001", "cc-000.tar/001", "cc-000.tar/sub/004.a.b/005"]
    assert rows == list(zip(["from txt", "one", "two", "一只狗"], names, strict=True))
    assert skips.counts == {'.json without a "caption"': 1, "caption is not UTF-8": 1}


def test_a_cut_shard_is_an_error(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {"000.txt": b"x" * 5000, "001.txt": b"y" * 5000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    with pytest.raises(ValueError, match="cut.tar: expected a whole, uncompressed tar file"):
        read(tmp_path / "cut.tar")


def test_an_unknown_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a caption file \(.json, .tsv, .* .tar\), found .xml"):
        read(tmp_path / "a.xml")


def test_file_names_find_their_photos() -> None:
    ids = pa.array(
        ["image/a.jpg", "image/sub/b.jpg", "image/x/c.jpg", "image/y/c.jpg", "s.tar/0001"], pa.large_string()
    )
    expected = {
        "image/a.jpg": "image/a.jpg",
        "a.jpg": "image/a.jpg",
        "train2017/a.jpg": "image/a.jpg",
        "sub/b.jpg": "image/sub/b.jpg",
        "b.jpg": "image/sub/b.jpg",
        "x/c.jpg": "image/x/c.jpg",
        "c.jpg": None,
        "0001.jpg": "s.tar/0001",
        "s.tar/0001": "s.tar/0001",
        "absent.jpg": None,
        None: None,
    }
    assert find_photos(pa.array(expected, pa.large_string()), ids).to_pylist() == list(expected.values())
    assert find_photos(pa.array(["a.jpg"], pa.large_string()), ids[:0]).to_pylist() == [None]


def test_ids_of_two_types_are_one(tmp_path: Path) -> None:
    images = [{"id": "1", "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    annotations = [{"image_id": 1, "caption": "one"}, {"image_id": "2", "caption": "two"}]
    rows, skips = read(coco(tmp_path / "c.json", images, annotations))
    assert rows == [("one", "a.jpg"), ("two", "b.jpg")]
    assert skips.counts == {}


def test_a_text_file_is_a_caption_a_line(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes('\ufeffa dog, "big"\ttall\r\n\n 一只狗 \n'.encode() + b"\xff\nlast")
    rows, skips = read(tmp_path / "c.txt")
    assert rows == [('a dog, "big"\ttall', None), ("一只狗", None), ("last", None)]
    assert skips.counts == {"empty caption": 1, "line is not UTF-8": 1}
    assert skips.examples["line is not UTF-8"].endswith("c.txt, line 4")


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"caption": "one", "image": "a.jpg"}',
        '{"text": ["two", "three"], "file_name": "b.jpg"}',
        "",
        '["four"]',
        '{"alt": "five"}',
        "{broken",
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    rows, skips = read(path)
    assert rows == [("one", "a.jpg"), ("two", "b.jpg"), ("three", "b.jpg")]
    assert skips.counts == {"line is no JSON object": 2, "line without caption or text or title": 1}
    assert read(path, "alt")[0] == [("five", None)]
    assert read(path, "text", "caption")[0] == [("two", None), ("three", None)]
