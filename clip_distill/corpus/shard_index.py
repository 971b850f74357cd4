"""Which files a tar has, and where: read from the tar once, then from an index in the user's cache folder.

Going through a tar's headers takes some 60 µs a file, which every run would pay for anew, and twice. An index belongs
to a tar's path and counts for the very file that it was made of: same size and times, or the mark by which a bucket
tells that it has not changed. It lies in the cache folder, not beside the tar, whose folder may be shared or read-only.
Deleting it costs one reading of the tar; where it can't be kept, the tar is read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import aside, cache_folder
from clip_distill.system.paths import base_name, is_url, open_binary, real_path
from clip_distill.system.talk import progress

SCHEMA = pa.schema({"name": pa.large_binary(), "offset": pa.int64(), "size": pa.int64()})
CHUNK = 65_536  # members held as Python objects at a time
MARKS = {"etag", "mtime", "lastmodified", "last_modified", "updated", "created"}  # of fsspec's `info`, in lower case


class Member(NamedTuple):
    """A regular file in a tar: its name, where its first byte is, and how many it has."""

    name: str
    offset: int
    size: int


def members(path: str) -> Iterator[Member]:
    """The regular files of a tar, in its order; names that are not UTF-8 have surrogates, as `tarfile` gives them.

    Args:
        path: An uncompressed tar, or a URL of one.

    Raises:
        ValueError: The file is not a whole tar.
        OSError: It can't be read.
    """
    version, index = version_of(path), _index_file(path)
    table = _load(index, version) if version and index else None
    if table is None:
        table = _walk(path)
        if version and index:
            with contextlib.suppress(OSError):  # a cache folder without room, or read-only
                _save(index, version, table)
    for batch in table.to_batches(CHUNK):
        for name, offset, size in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Member(name.decode("utf-8", "surrogateescape"), offset, size)


def version_of(path: str) -> str:
    """What is another as soon as the file is; empty where nothing tells."""
    if is_url(path):
        system, inside = url_to_fs(path)
        info = {key.lower(): str(value) for key, value in system.info(inside).items()}
        return str(sorted((key, info[key]) for key in info.keys() & MARKS | {"size"})) if info.keys() & MARKS else ""
    status = os.stat(path)
    # ctime as well: who copies a file over another may keep size and mtime
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _index_file(path: str) -> Path | None:
    """Where a tar's index lies: one for each path, so that a changed tar's takes the place of the old one's."""
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        return place_in_cache(path, "shards", ".parquet")
    return None


def place_in_cache(path: str, folder: str, extension: str) -> Path:
    """Where what is made of a file lies in the cache folder, by the file's own place.

    Raises:
        RuntimeError: The user has no home folder, and no cache folder is named.
    """
    digest = hashlib.sha256(real_path(path).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / folder / f"{digest}{extension}"


def _load(index: Path, version: str) -> pa.Table | None:
    """The index, if it is sound and of this version."""
    try:
        table = pq.read_table(index, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    sound = table.schema.equals(SCHEMA) and (table.schema.metadata or {}).get(b"version") == version.encode()
    return table if sound else None


def _save(index: Path, version: str, table: pa.Table) -> None:
    with aside(index) as beside:
        pq.write_table(table.replace_schema_metadata({"version": version}), beside, write_page_checksum=True)


def _walk(path: str) -> pa.Table:
    """Go through the tar itself."""
    batches = []
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            bar = progress(_files(tar), f"reading {base_name(path)}", unit=" files", leave=False)
            source = iter(bar)
            while chunk := list(itertools.islice(source, CHUNK)):
                columns = zip(*chunk, strict=True)
                arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
                batches.append(pa.record_batch(arrays, schema=SCHEMA))
    except tarfile.TarError as error:
        raise InvalidValue(
            f"{path}: expected a whole, uncompressed tar file, found: {error}. Fetch the shard again, or leave it out."
        ) from error
    return pa.Table.from_batches(batches, SCHEMA)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[bytes, int, int]]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else a long tar is kept in memory whole
        if member.isreg() and not member.issparse():
            yield member.name.encode("utf-8", "surrogateescape"), member.offset_data, member.size
