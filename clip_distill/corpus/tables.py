"""Photos and captions in tables: parquet files, and the Arrow files of Hugging Face's `datasets` (`save_to_disk`).

Arrow keeps a photo's bytes whole, so a photo is a place in the file, as in a tar, and is read without the rest. Parquet
packs them: of such a file the photos are copied into an Arrow file once, in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip_distill.corpus.report import Skips
from clip_distill.corpus.shard_index import place_in_cache, version_of
from clip_distill.system import paths
from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import aside
from clip_distill.system.talk import progress

TABLES = (".parquet", ".arrow")
PACKED_ROWS, MANY_ROWS = 64, 65_536  # that are unpacked at a time: of photos, of other columns


def is_table(path: str) -> bool:
    return paths.suffix(path) in TABLES and not paths.is_folder(path)


def saved_dataset(folder: str) -> list[str]:
    """The files of a dataset that `save_to_disk` wrote; none if the folder is something else.

    Raises:
        InvalidValue: The folder holds several splits.
    """
    if paths.is_file(splits := paths.join(folder, "dataset_dict.json")):
        names = json.loads(paths.read_bytes(splits))["splits"]
        places = " or ".join(paths.join(folder, name) for name in names)
        raise InvalidValue(f"{folder}: expected one split of a saved dataset, found {len(names)}. Give {places}")
    if not paths.is_file(state := paths.join(folder, "state.json")):
        return []
    return [paths.join(folder, file["filename"]) for file in json.loads(paths.read_bytes(state))["_data_files"]]


def row_id(path: str, row: int) -> str:
    """The id of the photo in a table's row, by the table's own name; Arrow files are called alike in all datasets."""
    name = paths.base_name(path)
    if paths.suffix(path) == ".arrow":
        name = f"{paths.base_name(path.rsplit('/', 1)[0] if '/' in path else '.')}/{name}"
    return f"{name}/{row:08d}"


def photo_column(schema: pa.Schema) -> int | None:
    """The first column that holds photos: bytes, or `datasets`' records of `bytes` and `path`."""
    return next((i for i, field in enumerate(schema) if _is_photo(field.type)), None)


def _is_photo(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_photo(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def table_images(path: str, skips: Skips) -> Iterator[tuple[str, str, int, int]]:
    """Each row's photo as (id `table.parquet/00000123`, path, offset, size).

    Raises:
        InvalidValue: The file is not what its extension says, or has no column of photos.
    """
    copy = path if paths.suffix(path) == ".arrow" and not paths.is_url(path) else str(_copy_of_photos(path))
    buffer = _arrow_bytes(copy)
    row = 0
    for batch in _open_arrow(path, buffer):
        column = _photos(path, batch)
        names = batch.column(photo_column(batch.schema)) if copy == path else None
        sizes, offsets = column.buffers()[2], _offsets(column)
        start = 0 if sizes is None else sizes.address - buffer.address
        for i, there in enumerate(column.is_valid().to_pylist()):
            number, row = row, row + 1
            if there:
                yield row_id(path, number), copy, start + offsets[i], offsets[i + 1] - offsets[i]
            elif names is not None and pa.types.is_struct(names.type) and (file := _path_of(names[i])):
                yield row_id(path, number), file, -1, -1
            else:
                skips.add("row without a photo's bytes", row_id(path, number))


def _path_of(photo: pa.Scalar) -> str | None:
    """The file that a record of `datasets` names, if it is here."""
    path = (photo.as_py() or {}).get("path")
    return path if path and os.path.isfile(path) else None


def _offsets(column: pa.Array) -> list[int]:
    """[N + 1] where each photo begins and the last one ends, in the column's buffer of bytes."""
    wide = pa.types.is_large_binary(column.type)
    numbers = pa.Array.from_buffers(
        pa.int64() if wide else pa.int32(), len(column) + 1, [None, column.buffers()[1]], offset=column.offset
    )
    found: list[int] = numbers.to_pylist()
    return found


def _photos(path: str, batch: pa.RecordBatch) -> pa.Array:
    """A batch's photos as a column of bytes."""
    column = batch.column(_require_photos(path, batch.schema))
    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]  # null where the record is


def _require_photos(path: str, schema: pa.Schema) -> int:
    """The column of photos.

    Raises:
        InvalidValue: There is none.
    """
    place = photo_column(schema)
    if place is None:
        raise InvalidValue(
            f"{path}: expected a column of photos (bytes, or datasets' Image), found "
            f"{', '.join(f'{field.name}: {field.type}' for field in schema) or 'no columns'}"
        )
    return place


def _open_arrow(path: str, source: pa.Buffer) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file, which is a stream in `datasets`, a file with an index elsewhere."""
    try:
        if source.size >= 6 and source.slice(0, 6).to_pybytes() == b"ARROW1":
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as error:
        raise InvalidValue(f"{path}: expected an Arrow file, found: {error}") from error


def _copy_of_photos(path: str) -> Path:
    """An Arrow file with the photos of a parquet file, or of an Arrow file behind a URL, made where it is not there."""
    version = version_of(path)
    copy = place_in_cache(path, "photos", ".arrow")
    with contextlib.suppress(OSError, pa.ArrowException):
        found = pa.ipc.open_stream(pa.memory_map(str(copy))).schema.metadata or {}
        if version and found.get(b"version") == version.encode():
            return copy
    schema = pa.schema({"bytes": pa.large_binary()}, metadata={"version": version})
    with aside(copy) as beside, pa.ipc.new_stream(str(beside), schema) as writer:
        for batch in progress(batches(path), f"unpacking {paths.base_name(path)}", unit=" batches", leave=False):
            writer.write_batch(pa.record_batch([_photos(path, batch).cast(pa.large_binary())], schema=schema))
    return copy


def schema_of(path: str) -> pa.Schema:
    """A table's columns; a struct's own are not counted.

    Raises:
        InvalidValue: The file is not what its extension says.
    """
    if paths.suffix(path) == ".parquet":
        with paths.open_binary(path) as file:
            return _parquet(path, file).schema_arrow
    first = next(_open_arrow(path, _arrow_bytes(path)), None)
    return pa.schema([]) if first is None else first.schema


def batches(path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A table's rows, some at a time.

    Args:
        path: A parquet or Arrow file, or a URL of one.
        columns: Names of those to read; by default that of the photos.

    Raises:
        InvalidValue: The file is not what its extension says, or has no column of photos.
    """
    if paths.suffix(path) != ".parquet":
        for batch in _open_arrow(path, _arrow_bytes(path)):
            yield batch.select(columns) if columns else batch
        return
    with paths.open_binary(path) as file:
        table = _parquet(path, file)
        wanted = columns or [table.schema_arrow.names[_require_photos(path, table.schema_arrow)]]
        yield from table.iter_batches(PACKED_ROWS if columns is None else MANY_ROWS, columns=wanted)


def _arrow_bytes(path: str) -> pa.Buffer:
    """An Arrow file, of which what is looked at is read; one behind a URL is read whole."""
    return pa.py_buffer(paths.read_bytes(path)) if paths.is_url(path) else pa.memory_map(path).read_buffer()


def _parquet(path: str, file: object) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidValue(f"{path}: expected a parquet file, found: {error}") from error
