"""Parallel captions: lines of a caption that the store has, and the same in another language.

A student that is trained on them learns to give a translation the teacher's embedding of its original, as in
multilingual knowledge distillation (Reimers & Gurevych, 2020), so the teacher need not know the language.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_distill.corpus.captions import encodable
from clip_distill.corpus.decoding import encoding_of_file, lines_of
from clip_distill.corpus.layout import Corpus
from clip_distill.corpus.report import Skips
from clip_distill.system import paths
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import progress, say

FORMATS = (".tsv", ".csv", ".parquet")
SCHEMA = pa.schema({"text": pa.large_string(), "original": pa.large_string()})
CHUNK = 65536  # rows held as Python objects at a time
REPEATED = "pair that is there already"
Columns = Sequence[str | int]
Row = tuple[int, object, object]  # its number from 1, the original, the translation


def with_translations(
    corpus: Corpus, files: Sequence[str] | str | None, columns: Columns = (1, 2), originals: bool = False
) -> Corpus:
    """The same corpus with parallel captions to train on, in place of its own; what was found is said.

    Args:
        corpus: What `scan` found.
        files: As `read_pairs` takes them; None leaves the corpus as it is.
        columns: As `read_pairs` takes them.
        originals: Train on the originals, too.

    Returns:
        Its training captions are a table of `text`, to train on, and `original`, whose embedding is the target; both
        are the same in the rows of originals. `image_id` is null.
    """
    if files is None:
        return corpus
    skips = Skips()
    pairs = read_pairs(files, columns, skips)
    unique = pairs.column("original").unique()
    several = "" if len(unique) == len(pairs) else f" of {len(unique):,} originals"
    say(f"translations: {len(pairs):,} pairs{several}", *skips.lines())
    if originals:
        pairs = pa.concat_tables([pairs, pa.table([unique, unique], schema=SCHEMA)])
    captions = pairs.append_column("image_id", pa.nulls(len(pairs), pa.large_string()))
    named = ", ".join([files] if isinstance(files, str) else files)
    train = dataclasses.replace(corpus.train, captions=captions, captions_sought=f"looked in {named} (--translations)")
    return dataclasses.replace(corpus, train=train)


def read_pairs(files: Sequence[str] | str, columns: Columns, skips: Skips) -> pa.Table:
    """Different pairs of an original and its translation, stripped, in the order of the files.

    A TSV is read as it stands, without quoting; a CSV with it. Neither needs a header: where columns are named the
    first line has their names, and one that is read as a pair does no harm, since no store has its "original".

    Args:
        files: Paths or URLs, with a shell's patterns, of `FORMATS`.
        columns: The original's and the translation's, by name or by number from 1.
        skips: Counts what is left out.

    Returns:
        Table of `text`, the translation, and `original`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is of another format or has no such columns, or there is no pair at all.
    """
    if len(columns) != 2:
        raise InvalidValue(f"translations_columns: expected two, the original's and the translation's, found {columns}")
    patterns = [files] if isinstance(files, str) else list(files)
    found = [path for pattern in patterns for path in paths.expand(pattern)]
    rows = itertools.chain.from_iterable(_clean(path, _read(path, columns, skips), skips) for path in found)
    bar = iter(progress(rows, "reading translations", unit=" pairs", leave=False))
    chunks = [SCHEMA.empty_table()]
    while chunk := list(itertools.islice(bar, CHUNK)):
        chunks.append(pa.table([list(column) for column in zip(*chunk, strict=True)], schema=SCHEMA))
    pairs = _once(pa.concat_tables(chunks), skips)
    if not len(pairs):
        raise InvalidValue(
            f"{', '.join(patterns)}: expected pairs of an original and its translation, found none. A TSV has both on "
            "a line, with a tab between, in UTF-8 (iconv -f GB18030 -t UTF-8 converts)\n" + "\n".join(skips.lines())
        )
    return pairs


def _once(pairs: pa.Table, skips: Skips) -> pa.Table:
    """Each different pair, where it was first."""
    numbered = pairs.append_column("row", pa.array(range(len(pairs)), pa.int64()))
    groups = numbered.group_by(SCHEMA.names).aggregate([("row", "min"), ("row", "count")]).sort_by("row_min")
    if repeated := len(pairs) - len(groups):
        first = groups.filter(pc.greater(groups.column("row_count"), 1)).column("text")[0].as_py()
        skips.counts[REPEATED], skips.examples[REPEATED] = repeated, first
    return groups.select(SCHEMA.names).combine_chunks()


def _clean(path: str, rows: Iterable[Row], skips: Skips) -> Iterator[tuple[str, str]]:
    """(translation, original) of each good row."""
    for number, *cells in rows:
        where = f"{path}, row {number}"
        if not all(isinstance(cell, str) and encodable(cell) for cell in cells):
            skips.add("original or translation is not a string of valid Unicode", where)
            continue
        original, translation = (str(cell).strip() for cell in cells)
        if original and translation:
            yield translation, original
        else:
            skips.add("empty original or translation", where)


def _read(path: str, columns: Columns, skips: Skips) -> Iterator[Row]:
    extension = paths.suffix(path)
    if extension == ".parquet":
        yield from _read_parquet(path, columns)
        return
    if extension not in FORMATS:
        found = extension or "no extension"
        raise InvalidValue(f"{path}: expected parallel captions ({', '.join(FORMATS)}), found {found}")
    lines = enumerate(_tsv_lines(path, skips) if extension == ".tsv" else _csv_lines(path), 1)
    if all(_is_number(column) for column in columns):
        places = [int(column) - 1 for column in columns]
    else:
        places = _find(path, next(lines, (0, None))[1] or [], columns)
    for number, cells in lines:
        if cells is not None and len(cells) > max(places):
            yield number, cells[places[0]], cells[places[1]]
        elif cells is not None:
            skips.add("row with too few columns", f"{path}, row {number}")


def _tsv_lines(path: str, skips: Skips) -> Iterator[list[str] | None]:
    """The cells of each line, None for one that is skipped and counted."""
    before = 0
    for number, line in lines_of(path, skips):
        yield from [None] * (number - before - 1)  # lines that were skipped, so that rows keep their numbers
        before = number
        yield line.split("\t")


def _csv_lines(path: str) -> Iterator[list[str]]:
    with paths.open_binary(path) as file:
        try:
            yield from csv.reader(io.TextIOWrapper(file, encoding_of_file(path), newline=""))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidValue(f"{path}: expected a CSV in UTF-8, found: {error}") from error


def _read_parquet(path: str, columns: Columns) -> Iterator[Row]:
    with paths.open_binary(path) as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise InvalidValue(f"{path}: expected a parquet file, found: {error}") from error
        names = table.schema_arrow.names
        chosen = [names[place] for place in _find(path, names, columns)]
        number = 0
        for batch in table.iter_batches(columns=chosen):
            for original, translation in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
                number += 1
                yield number, original, translation


def _find(path: str, header: list[str], columns: Columns) -> list[int]:
    """Places of the columns in a header."""
    names = [name.strip() for name in header]
    places = []
    for column in map(str, columns):
        if column in names:
            places.append(names.index(column))
        elif column.isdecimal() and 1 <= int(column) <= len(names):
            places.append(int(column) - 1)
        else:
            raise InvalidValue(
                f"{path}: expected a column {column!r} (--translations_columns, names or numbers from 1), found "
                f"{', '.join(map(repr, names)) or 'an empty file'}"
            )
    return places


def _is_number(column: str | int) -> bool:
    return str(column).isdecimal() and int(column) >= 1
