"""Captions from COCO JSON, TSV, CSV, text, JSON lines, tables and WebDataset shards: one row per (caption, photo)."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv

from clip_distill.corpus.report import Skips
from clip_distill.corpus.shards import shard_captions
from clip_distill.corpus.tables import batches, is_table, photo_column, row_id, schema_of
from clip_distill.system.errors import InvalidValue
from clip_distill.system.paths import open_binary, suffix

CAPTION_COLUMNS = ("caption", "text", "title")
IMAGE_COLUMNS = ("image", "file_name", "filepath", "path", "image_path")
FORMATS = (".json", ".tsv", ".csv", ".txt", ".jsonl", ".parquet", ".arrow", ".tar")

# What a reader yields: a caption, several, or whatever stands in its place; and its photo's file name, if it has one.
RawRow = tuple[object, object]
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
        rows = _read_csv(path, caption_column, image_column, skips)
    elif extension == ".txt":
        rows = ((line, None) for _, line in _lines(path, skips))
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
    with open_binary(path) as file:
        try:
            content = json.load(io.TextIOWrapper(file, "utf-8-sig"))
        except ValueError as error:  # bad JSON, or bad UTF-8
            raise InvalidValue(f"{path}: expected COCO captions in JSON, found broken JSON: {error}") from error
    parts = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) for part in parts):
        keys = ", ".join(map(repr, content)) or "no keys" if isinstance(content, dict) else type(content).__name__
        raise InvalidValue(
            f'{path}: expected COCO captions, {{"images": [{{"id", "file_name"}}, …], "annotations": '
            f'[{{"image_id", "caption"}}, …]}}, found {keys}'
        )
    names: dict[str, str] = {}  # 7 and "7" are one id: files have been seen that mix them
    for image in content["images"]:
        image_id, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if isinstance(image_id, int | str) and isinstance(name, str):
            names[str(image_id)] = name
        else:
            skips.add("image entry without id and file_name", path)
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(image_id, int | str) and str(image_id) in names:
            yield annotation.get("caption"), names[str(image_id)]
        else:
            skips.add("annotation of an image that the file does not list", f"{path}, image_id {image_id!r}")


def _read_tsv(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[RawRow]:
    """Rows of a TSV as Conceptual Captions has them: no quoting at all, so a quote is a part of its caption.

    The first line is a header if it has the caption's column by name; without one the first column is the caption.
    """
    columns: tuple[int, int | None] | None = None
    for number, line in _lines(path, skips):
        cells = line.split("\t")
        if columns is None:
            if _has_header(cells, caption_column):
                columns = _pick_columns(path, cells, caption_column, image_column)
                continue
            columns = _pick_columns(path, [""] * len(cells), caption_column or "1", image_column)
        caption, image = columns
        if caption >= len(cells):
            skips.add("line with too few columns", f"{path}, line {number}")
        else:
            yield cells[caption], cells[image] if image is not None and image < len(cells) else None


def _read_csv(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[RawRow]:
    """Rows of a CSV with a header, quoted where needed."""
    with open_binary(path) as file:
        try:
            header = next(csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline="")), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidValue(f"{path}: expected a CSV in UTF-8, found: {error}") from error
    caption, image = _pick_columns(path, header, caption_column, image_column)
    columns = [str(number) for number in range(len(header))]  # a header may repeat a name

    def skip(row: Any) -> str:
        skips.add("row with another number of columns than the header", f"{path}: {(row.text or '')[:40]!r}")
        return "skip"

    with open_binary(path) as file:
        chosen = [columns[caption]] + ([columns[image]] if image is not None else [])
        # numbers and "NA" are captions, too: nothing is guessed to be of another type or missing
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(chosen, pa.string()), include_columns=chosen)
        try:
            batches = pa.csv.open_csv(
                file,
                pa.csv.ReadOptions(column_names=columns, skip_rows_after_names=1),
                pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
                options,
            )
            yield from _rows(batches, 0, None if image is None else 1)
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):
                raise InvalidValue(f"{path}: expected a CSV in UTF-8, found: {error}") from error


def _lines(path: str, skips: Skips) -> Iterator[tuple[int, str]]:
    """A text file's lines, with their numbers."""
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                skips.add("line is not UTF-8", f"{path}, line {number}")


def _read_json_lines(path: str, caption_column: str | None, image_column: str | None, skips: Skips) -> Iterator[RawRow]:
    """A JSON object a line: its caption, or a list of them, and its photo by their keys."""
    captions = (caption_column,) if caption_column else CAPTION_COLUMNS
    images = (image_column,) if image_column else IMAGE_COLUMNS
    for number, line in _lines(path, skips):
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
    caption, image = _pick_columns(path, names, caption_column, image_column)
    if photos is not None and image_column is None:
        image = None
    for column in [caption] + ([image] if image is not None else []):
        kind = schema.field(column).type
        if not _is_text(kind):
            raise InvalidValue(f"{path}: expected column {names[column]!r} to hold text, found {kind}")
    columns = [names[caption]] + ([names[image]] if image is not None else [])
    rows = _rows(batches(path, columns), columns[0], columns[1] if image is not None else None)
    own = photos is not None and image is None
    yield from ((text, row_id(path, row) if own else name) for row, (text, name) in enumerate(rows))


def _is_text(kind: pa.DataType) -> bool:
    """Strings, dictionary-encoded strings, or lists of them."""
    inner = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _rows(batches: Iterable[pa.RecordBatch], caption: int | str, image: int | str | None) -> Iterator[RawRow]:
    for batch in batches:
        captions = batch.column(caption).to_pylist()
        images = batch.column(image).to_pylist() if image is not None else [None] * len(captions)
        yield from zip(captions, images, strict=True)


def _has_header(cells: list[str], caption_column: str | None) -> bool:
    wanted = {*CAPTION_COLUMNS, (caption_column or CAPTION_COLUMNS[0]).lower()}
    return any(cell.strip().lower() in wanted for cell in cells)


def _pick_columns(
    path: str, header: list[str], caption_column: str | None, image_column: str | None
) -> tuple[int, int | None]:
    """Positions of the caption's and the photo's columns."""
    caption = _find_column(path, header, caption_column, CAPTION_COLUMNS, "caption_column")
    if caption is None:
        raise InvalidValue(
            f"{path}: expected a column called {', '.join(CAPTION_COLUMNS)}, found {header or 'an empty file'}. "
            "Name the caption's column with --sources.caption_column"
        )
    return caption, _find_column(path, header, image_column, IMAGE_COLUMNS, "image_column")


def _find_column(path: str, header: list[str], wanted: str | None, known: tuple[str, ...], option: str) -> int | None:
    lowered = [name.strip().lower() for name in header]
    if wanted is None:
        return next((lowered.index(name) for name in known if name in lowered), None)
    if wanted.lower() in lowered:
        return lowered.index(wanted.lower())
    if wanted.isdecimal() and 1 <= int(wanted) <= len(header):
        return int(wanted) - 1
    found = ", ".join(map(repr, header)) if any(header) else f"{len(header)} columns without names"
    raise InvalidValue(
        f"{path}: expected a column {wanted!r} (--sources.{option}, a name or a number from 1), found {found}"
    )
