"""Parallel captions from real files: every pair once, and every line that is left out counted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_distill.corpus.layout import scan
from clip_distill.corpus.report import Skips
from clip_distill.corpus.translations import read_pairs, with_translations
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.train.samples import with_targets

PAIRS = [("a dog .", "一只狗。"), ('"two", cats', "两只猫"), ("a dog .", "一条狗。")]


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def read(files: list[str] | str, *columns: str | int) -> tuple[list[tuple[str, str]], Skips]:
    skips = Skips()
    table = read_pairs(files, columns or (1, 2), skips)
    return list(zip(table["original"].to_pylist(), table["text"].to_pylist(), strict=True)), skips


def test_all_formats_give_the_same_pairs(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", "".join(f"{one}\t{two}\n" for one, two in PAIRS), "utf-8-sig")
    quoted = (f'"{one.replace(chr(34), chr(34) * 2)}","{two}"\r\n' for one, two in PAIRS)
    csv = write(tmp_path / "a.csv", "".join(quoted))
    columns = dict(zip(("english", "non_english"), zip(*PAIRS, strict=True), strict=True))
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), tmp_path / "a.parquet")
    for path in (tsv, csv, str(tmp_path / "a.parquet"), f"file://{tmp_path}/a.tsv"):
        pairs, skips = read(path)
        assert pairs == PAIRS
        assert not skips.counts


def test_columns_by_name_and_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "id\tzh\ten\n1\t一只狗\ta dog\n2\t两只猫\ttwo cats\n")
    expected = [("a dog", "一只狗"), ("two cats", "两只猫")]
    assert read(path, "en", "zh")[0] == expected
    assert read(path, 3, 2)[0] == [("en", "zh"), *expected]  # no store has "en"
    with pytest.raises(ValueError, match="expected a column 'de' .* found 'id', 'zh', 'en'"):
        read(path, "en", "de")


def test_what_is_left_out_is_counted_with_its_first_place(tmp_path: Path) -> None:
    lines = [
        b"a dog\t\xe7\x8b\x97",
        b"a dog\t\xe7\x8b\x97",
        b"no translation",
        b"a cat\t ",
        b"a cow\t\xff",
        b"b\t\xe7\x89\x9b",
    ]
    (tmp_path / "a.tsv").write_bytes(b"\n".join(lines))
    pairs, skips = read(str(tmp_path / "a.tsv"))
    assert pairs == [("a dog", "狗"), ("b", "牛")]
    assert skips.counts == {
        "row with too few columns": 1,
        "empty original or translation": 1,
        "line is not UTF-8": 1,
        "pair that is there already": 1,
    }
    assert [skips.examples[reason].split(", ")[-1] for reason in skips.counts] == ["row 3", "row 4", "line 5", "狗"]


def test_several_files_and_patterns_are_one_set(tmp_path: Path) -> None:
    write(tmp_path / "a-0.tsv", "one\t一\n")
    write(tmp_path / "a-1.tsv", "two\t二\none\t一\n")
    pairs, skips = read(f"{tmp_path}/a-{{0..1}}.tsv")
    assert pairs == [("one", "一"), ("two", "二")]
    assert skips.counts == {"pair that is there already": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "一只狗\t狗\n".encode("gb18030"), "found none.*in UTF-8 .*skipped 1: line is not UTF-8"),
        ("a.csv", "一只狗,狗\n".encode("gb18030"), "expected a CSV in UTF-8"),
        ("a.tsv", b"", "expected pairs of an original and its translation, found none"),
        ("a.parquet", b"nothing", "expected a parquet file"),
        ("a.txt", b"one\ttwo", r"expected parallel captions \(.tsv, .csv, .parquet\), found .txt"),
    ],
)
def test_files_without_pairs_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read(str(tmp_path / name))


def test_a_corpus_trains_on_translations_and_on_originals_where_asked(tiny_data: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "".join(f"{one}\t{two}\n" for one, two in PAIRS))
    corpus = scan(str(tiny_data))
    assert with_translations(corpus, None) is corpus
    captions = with_translations(corpus, path).train.require_captions()
    assert captions["text"].to_pylist() == [two for _, two in PAIRS]
    both = with_translations(corpus, path, originals=True).train.require_captions()
    assert both["text"].to_pylist() == [*(two for _, two in PAIRS), "a dog .", '"two", cats']
    assert both["original"].to_pylist() == [*(one for one, _ in PAIRS), "a dog .", '"two", cats']
    assert both["image_id"].null_count == len(both)


def test_targets_are_the_originals_rows_and_the_lacking_are_said(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_table(tiny_views_store, "text", "train")
    known = store.ids[3].as_py(), store.ids[0].as_py()
    path = write(tmp_path / "a.tsv", f"{known[0]}\t三\nnever seen\t无\n{known[1]}\t零\n")
    corpus = with_translations(scan(str(tiny_data)), path)
    texts, rows = with_targets(corpus.train.require_captions(), store)
    assert (texts, rows.tolist()) == (["三", "零"], [3, 0])
    assert "skipped 1: original that the store lacks (first: 'never seen')" in capsys.readouterr().out
    swapped = with_translations(scan(str(tiny_data)), path, (2, 1))
    with pytest.raises(StoreError, match=r"found none of 3 .*first is '三'.*translations_columns"):
        with_targets(swapped.train.require_captions(), store)
