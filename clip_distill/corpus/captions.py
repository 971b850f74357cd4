"""Captions from COCO JSON, TSV, CSV, text, JSON lines, tables and WebDataset shards: one row per (caption, photo)."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import operator
import unicodedata
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.csv

from clip_distill.corpus.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, has_header, pick_columns
from clip_distill.corpus.csv_rows import RawRow, read_csv, rows_of
from clip_distill.corpus.decoding import decoded, lines_of
from clip_distill.corpus.likely import ROWS, require_text
from clip_distill.corpus.report import Skips
from clip_distill.corpus.shards import shard_captions
from clip_distill.corpus.tables import TABLES, batches, is_table, photo_column, row_id, schema_of
from clip_distill.system.errors import InvalidValue
from clip_distill.system.paths import read_bytes, suffix

FORMATS = (".json", ".tsv", ".csv", ".txt", ".jsonl", ".parquet", ".arrow", ".tar")

Row = tuple[str, str | None]


def read_captions(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[Row]:
    """The captions of one file, stripped, in its order, duplicates included; empty and unusable ones are counted.

    Args:
        path: A file or URL; its extension says the format, one of `FORMATS`.
        caption_column: Of a table: the column's name, or its number from 1. None looks for `CAPTION_COLUMNS`.
        image_column: The same for the photo's file name; None looks for `IMAGE_COLUMNS`, and goes without.
        skips: Counts what is left out.

    Returns:
        (caption, file name of its photo or None) rows.

    Raises:
        ValueError: The file is not what its extension says, or has no such column.
    """
    extension = suffix(path)
    if extension == ".json":
        rows: Iterable[RawRow] = _read_coco(path, skips)
    elif extension == ".tsv":
        rows = _read_tsv(path, caption_column, image_column, skips)
    elif extension == ".csv":
        rows = read_csv(path, caption_column, image_column, skips)
    elif extension == ".txt":
        rows = ((line, None) for _, line in lines_of(path, skips))
    elif extension == ".jsonl":
        rows = _read_json_lines(path, caption_column, image_column, skips)
    elif is_table(path):
        rows = _read_table(path, caption_column, image_column)
    elif extension == ".tar":
        rows = shard_captions(path, skips)
    else:
        raise InvalidValue(
            f"{path}: expected a caption file ({', '.join(FORMATS)}), found {extension or 'no extension'}"
        )
    if caption_column is None and extension in (".tsv", ".csv", ".jsonl", *TABLES):
        rows = require_text(path, rows, operator.itemgetter(0), functools.partial(_columns, path))
    return _clean(path, rows, skips)


def _clean(path: str, rows: Iterable[RawRow], skips: Skips) -> Iterator[Row]:
    for number, (value, name) in enumerate(rows, 1):
        for caption in value if isinstance(value, list) else [value]:
            if not isinstance(caption, str):
                skips.add("caption is not a string", f"{path}, caption {number}")
            elif not (stripped := caption.strip()):
                skips.add("empty caption", f"{path}, caption {number}")
            elif not encodable(stripped):
                skips.add("caption is not valid Unicode", f"{path}, caption {number}")
            elif "\0" in stripped:
                skips.add("caption holds a NUL", f"{path}, caption {number}")
            else:
                yield stripped, tidy_name(name) if isinstance(name, str) and encodable(name) else None


def encodable(text: str) -> bool:
    """Whether the text is valid Unicode: lone surrogates, from JSON escapes or raw file names, are not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tidy_name(name: str) -> str:
    """A file name as ids spell it: `/` between folders, Unicode NFC, so that it is the same on every system."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))


def _read_coco(path: str, skips: Skips) -> Iterator[RawRow]:
    try:
        content = json.loads(decoded(read_bytes(path), path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidValue(f"{path}: expected COCO captions in JSON, found broken JSON: {error}") from error
    parts = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) for part in parts):
        keys = ", ".join(map(repr, content)) or "no keys" if isinstance(content, dict) else type(content).__name__
        raise InvalidValue(
            f'{path}: expected COCO captions, {{"images": [{{"id", "file_name"}}, …], "annotations": '
            f'[{{"image_id", "caption"}}, …]}}, found {keys}'
        )
    names: dict[str, str | None] = {}  # 7 and "7" are one id: files have been seen that mix them
    for image in content["images"]:
        image_id, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if not isinstance(image_id, int | str) or not isinstance(name, str):
            skips.add("image entry without id and file_name", path)
        elif names.setdefault(str(image_id), name) != name:
            names[str(image_id)] = None
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        known = isinstance(image_id, int | str) and str(image_id) in names
        if known and (name := names[str(image_id)]) is not None:
            yield annotation.get("caption"), name
        elif known:
            skips.add("annotation of an image id that several photos have", f"{path}, image_id {image_id!r}")
        else:
            skips.add("annotation of an image that the file does not list", f"{path}, image_id {image_id!r}")


def _read_tsv(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[RawRow]:
    """Rows of a TSV as Conceptual Captions has them: no quoting at all, so a quote is a part of its caption.

    The first line is a header if it has the caption's column by name; without one the first column is the caption.
    """
    columns: tuple[int, int | None] | None = None
    width = 0
    for number, line in lines_of(path, skips):
        cells = line.split("\t")
        if columns is None:
            width = len(cells)
            if has_header(cells, caption_column):
                columns = pick_columns(path, cells, caption_column, image_column)
                continue
            columns = pick_columns(path, [""] * len(cells), caption_column or "1", image_column)
        caption, image = columns
        if caption >= len(cells):
            skips.add("line with too few columns", f"{path}, line {number}")
        elif len(cells) > width:
            skips.add("line with more columns than the first: a tab in its caption?", f"{path}, line {number}")
        else:
            yield cells[caption], cells[image] if image is not None and image < len(cells) else None


def _read_json_lines(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[RawRow]:
    """A JSON object a line: its caption, or a list of them, and its photo by their keys."""
    captions = (caption_column,) if caption_column else CAPTION_COLUMNS
    images = (image_column,) if image_column else IMAGE_COLUMNS
    for number, line in lines_of(path, skips):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            skips.add("line is no JSON object", f"{path}, line {number}")
        elif (caption := next((key for key in captions if key in row), None)) is None:
            skips.add(f"line without {' or '.join(captions)}", f"{path}, line {number}")
        else:
            yield row[caption], next((row[key] for key in images if key in row), None)


def _read_table(path: str, caption_column: str | None, image_column: str | None) -> Iterator[RawRow]:
    """Rows of a table; where it holds photos, too, each caption is that of its own row's."""
    schema = schema_of(path)
    names, photos = schema.names, photo_column(schema)
    caption, image = pick_columns(path, names, caption_column, image_column)
    if photos is not None and image_column is None:
        image = None
    for column in [caption] + ([image] if image is not None else []):
        kind = schema.field(column).type
        if not _is_text(kind):
            found = "photos; pass it as --sources.train_images" if column == photos else kind
            raise InvalidValue(f"{path}: expected column {names[column]!r} to hold text, found {found}")
    columns = [names[caption]] + ([names[image]] if image is not None else [])
    rows = rows_of(batches(path, columns), columns[0], columns[1] if image is not None else None)
    own = photos is not None and image is None
    yield from ((text, row_id(path, row) if own else name) for row, (text, name) in enumerate(rows))


def _is_text(kind: pa.DataType) -> bool:
    """Strings, dictionary-encoded strings, or lists of them."""
    inner = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _columns(path: str) -> list[list[object]]:
    """The first cells of each column, to find the one that looks like captions."""
    if is_table(path):
        first = next(batches(path, schema_of(path).names), None)
        return [] if first is None else [column.slice(0, ROWS).to_pylist() for column in first.columns]
    if suffix(path) == ".jsonl":
        return []
    lines = (line for _, line in itertools.islice(lines_of(path, Skips()), 1, ROWS))
    cells: Iterable[list[str]] = csv.reader(lines) if suffix(path) == ".csv" else (line.split("\t") for line in lines)
    return [list(column) for column in itertools.zip_longest(*cells, fillvalue="")]
