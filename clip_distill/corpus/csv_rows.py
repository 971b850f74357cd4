"""Captions in a CSV: a header, quotes where needed, and rows that a quote which is not closed would swallow."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from clip_distill.corpus.columns import pick_columns
from clip_distill.corpus.decoding import FIX, encoding_of_file
from clip_distill.corpus.report import Skips
from clip_distill.system.errors import InvalidValue
from clip_distill.system.paths import open_binary

MOST_LINES = 20  # of one quoted caption
# a caption, several, or whatever stands in its place; and its photo's file name, if it has one
RawRow = tuple[object, object]


def read_csv(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[RawRow]:
    """Rows of a CSV with a header, quoted where needed."""
    encoding = encoding_of_file(path)
    with open_binary(path) as file:
        try:
            header = next(csv.reader(io.TextIOWrapper(file, encoding, newline="")), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidValue(f"{path}: expected a CSV in UTF-8 or UTF-16, found: {error}. {FIX}") from error
    caption, image = pick_columns(path, header, caption_column, image_column)
    columns = [str(number) for number in range(len(header))]  # a header may repeat a name

    def skip(row: Any) -> str:
        for line in (row.text or "").split("\n"):  # several, where a quote holds them together
            skips.add("row with another number of columns than the header", f"{path}: {line[:40]!r}")
        return "skip"

    with open_binary(path) as file:
        # numbers and "NA" are captions, too: nothing is guessed to be of another type or missing
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
        try:
            batches = pa.csv.open_csv(
                file,
                pa.csv.ReadOptions(
                    column_names=columns, skip_rows_after_names=1, encoding=encoding.replace("-sig", "")
                ),
                pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
                options,
            )
            yield from rows_of(_apart(path, batches, skips), caption, image)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            if "Empty CSV" not in str(error):
                why = "a quote that is opened and not closed" if "straddling" in str(error) else error
                raise InvalidValue(f"{path}: expected a CSV in UTF-8 or UTF-16, found: {why}") from error


def _apart(path: str, batches: Iterable[pa.RecordBatch], skips: Skips) -> Iterator[pa.RecordBatch]:
    """A CSV's rows without those in which a quote that is not closed holds others; these are counted line by line."""
    row = 1
    for batch in batches:
        long = [pc.fill_null(pc.match_substring(column, "\n"), False) for column in batch.columns]
        keep = np.ones(len(batch), bool)
        for place in np.flatnonzero(functools.reduce(np.logical_or, (np.asarray(each) for each in long), ~keep)):
            cells = [column[int(place)].as_py() or "" for column in batch.columns]
            lines = [line for cell in cells for line in cell.rstrip("\n").split("\n")[1:]]
            if len(lines) > MOST_LINES or (len(cells) > 1 and any(line.count(",") >= len(cells) - 1 for line in lines)):
                keep[place] = False
                for _ in range(1 + len(lines)):
                    skips.add("row within a quote that is not closed", f"{path}, row {row + int(place)}")
        row += len(batch)
        yield batch if keep.all() else batch.filter(pa.array(keep))


def rows_of(batches: Iterable[pa.RecordBatch], caption: int | str, image: int | str | None) -> Iterator[RawRow]:
    for batch in batches:
        captions = batch.column(caption).to_pylist()
        images = batch.column(image).to_pylist() if image is not None else [None] * len(captions)
        yield from zip(captions, images, strict=True)
