"""Put one shard, or more views of one, into a table: whole or not at all, and only by one program at a time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from clip_distill.store.manifest import StoreError
from clip_distill.store.table import ROWS, view_file
from clip_distill.system.errors import Error
from clip_distill.system.files import cache_folder, not_written, sync
from clip_distill.system.remote import Location, load_json, save_json
from clip_distill.tokens.ragged import Ragged

RECORD = "shard.json"
CHUNK = 65536  # ids held as Python objects at a time
GLANCE = 5.0  # seconds; far longer than a process holds a lock that it only looks at


class Photo(NamedTuple):
    """Which photo an image's embedding is of: `pixels.photos.digest_of` its file, and the file's size in bytes."""

    digest: int
    bytes: int


@dataclass
class Shard:
    """The rows of one shard, in order.

    Args:
        ids: [N] image ids or captions.
        views: An array [N, D] for each view that was asked for.
        tokens: The captions' tokens; None for images.
        skipped: Id → reason, of items that got no row.
        photos: [N] which photos these are; None for captions, and where nobody knows.
    """

    ids: list[str]
    views: list[NDArray[Any]]
    tokens: Ragged | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    photos: list[Photo] | None = None


def write_shard(folder: Location, name: str, shard: Shard, dtype: str, rank: int = 0) -> None:
    """Write one shard aside, then rename its folder into place; to a URL, upload its files, `shard.json` last.

    Raises:
        StoreError: A number does not fit the store's dtype, or the disk is full.
    """
    with _writing(folder):
        if not isinstance(folder, Path):
            return _write_files(folder, name, folder / name, shard, dtype)
        aside = folder / f".{name}-rank{rank}.tmp"
        try:
            aside.mkdir()
            _write_files(folder, name, aside, shard, dtype)
            aside.rename(folder / name)
            sync(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # is gone unless something failed


def _write_files(folder: Location, name: str, place: Location, shard: Shard, dtype: str) -> None:
    sums = {file: _write(place / file, content) for file, content in _files(folder, shard, dtype)}
    record = {"name": name, "rows": len(shard.ids), "skipped": shard.skipped, "sha256": sums}
    save_json(place / RECORD, record)


def add_views(folder: Location, name: str, shard: Shard, numbers: range, dtype: str) -> None:
    """Put views into a shard that is there; its `shard.json`, replaced last, makes them count.

    Raises:
        StoreError: A row has no such view, since its photo can't be read any more or is another one; or see
            `write_shard`.
    """
    place = folder / name
    record = load_json(place / RECORD)
    if len(shard.ids) != record["rows"]:
        first, reason = next(iter(shard.skipped.items()))
        raise StoreError(
            f"{place}: expected to read the {record['rows']} photos of its rows again, found {len(shard.skipped)} that "
            f"can't be, the first {first} ({reason}). Bring them back, or make a new --store with these views."
        )
    _require_same_photos(place, shard)
    with _writing(folder):
        for number, view in zip(numbers, shard.views, strict=True):
            content = _npy(_stored(folder, view, dtype))
            # a file that shard.json does not list is not there yet, so it need not be whole
            record["sha256"][view_file(number)] = _write(place / view_file(number), content)
        save_json(place / RECORD, record | {"sha256": dict(sorted(record["sha256"].items()))})


def _require_same_photos(place: Location, shard: Shard) -> None:
    """The photos must be those of view 0; a table that does not know is left alone."""
    with (place / ROWS).open("rb") as file:
        rows = pq.read_table(file)
    if shard.photos is None or "digest" not in rows.column_names:
        return
    found = [photo.digest for photo in shard.photos]
    pairs = zip(shard.ids, rows.column("digest").to_pylist(), found, strict=True)
    changed = [f"{id}: expected digest {old:016x}, found {new:016x}" for id, old, new in pairs if old != new]
    if changed:
        raise StoreError(
            f"{place}: expected the photos of its rows, to add views to them; found {len(changed)} others under the "
            f"same ids, the first {changed[0]}. Bring the old photos back, or name another --store."
        )


def write_ids(path: Location, ids: pa.ChunkedArray, rank: int) -> None:
    """Replace a parquet file that holds one column `id`; processes that do so at a time write the same."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ids.cast(pa.large_string())}), buffer)
    with _writing(path.parent):
        aside = path.with_name(f".{path.name}-rank{rank}.tmp") if isinstance(path, Path) else path
        _write(aside, buffer.getvalue())
        if isinstance(aside, Path) and isinstance(path, Path):
            aside.replace(path)


def read_ids(path: Location) -> pa.ChunkedArray:
    """What `write_ids` wrote."""
    with path.open("rb") as file:
        return pq.read_table(file).column("id")


def digest_ids(ids: pa.ChunkedArray) -> str:
    """SHA-256 of ids, each ended by a zero byte."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), CHUNK):
        digest.update(b"".join(id.encode() + b"\0" for id in ids.slice(start, CHUNK).to_pylist()))
    return digest.hexdigest()


def _files(folder: Location, shard: Shard, dtype: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, one at a time, in the order of their names."""
    if shard.tokens is not None:
        yield "offsets.npy", _npy(shard.tokens.offsets)
    buffer = io.BytesIO()
    columns = {"id": pa.array(shard.ids, pa.large_string())}
    if shard.photos is not None:
        columns["digest"] = pa.array([photo.digest for photo in shard.photos], pa.uint64())
        columns["bytes"] = pa.array([photo.bytes for photo in shard.photos], pa.int64())
    pq.write_table(pa.table(columns), buffer)
    yield ROWS, buffer.getvalue()
    if shard.tokens is not None:
        yield "tokens.npy", _npy(shard.tokens.flat)
    for number, view in enumerate(shard.views):
        yield view_file(number), _npy(_stored(folder, view, dtype))


def _stored(folder: Location, view: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The numbers as they are stored, all finite."""
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = view.astype(dtype)
    if not np.isfinite(stored).all():
        raise StoreError(
            f"{folder}: the teacher gave numbers that {dtype} can't hold (largest {np.abs(view).max():.3g}). "
            "Use --dtype float32; if it says so again, the teacher gives NaN: try --precision fp32."
        )
    return stored


def _npy(array: NDArray[Any]) -> bytes:
    """A .npy file's content. Straight to disk, NumPy would hide the reason of a failed write (errno is None)."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write(path: Location, content: bytes) -> str:
    """Write a file, down to the disk; return its SHA-256."""
    if isinstance(path, Path):
        try:
            with open(path, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)  # on a full disk, room is what is needed
            raise
    else:
        path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _writing(folder: Location) -> Iterator[None]:
    """Errors of the file system as one that says what to do."""
    try:
        yield
    except OSError as error:
        reason = f"{folder}: could not write: {error}. Finished shards are safe: run the same command again"
        if isinstance(folder, Path) and isinstance(
            known := not_written(folder, error, "Finished shards are safe"), Error
        ):
            reason = str(known)
        raise StoreError(reason) from error


@contextlib.contextmanager
def only_writer(folder: Location, rank: int, world: int) -> Iterator[None]:
    """Hold a table for process `rank` of `world`; the kernel lets go of it when the process dies.

    The lock of a remote table lies on this machine, so it keeps out only other programs on this machine.

    Raises:
        StoreError: Another program is writing the table.
    """
    place = folder
    if not isinstance(place, Path):
        place = cache_folder() / "locks" / hashlib.sha256(str(folder).encode()).hexdigest()
    if place.is_dir() and not os.access(place, os.W_OK):
        yield  # a finished table need not be written to, and an unfinished one says that it can't be
        return
    with _writing(folder):
        place.mkdir(parents=True, exist_ok=True)
    with _held(folder, place / f".lock-{rank}-of-{world}"):
        # a run of another number of processes holds other files; both may see each other here, and both stop.
        # Processes of this run look at the same files, so a held one may be free in a moment
        for other in place.glob(".lock-*-of-*"):
            if not other.name.endswith(f"-of-{world}"):
                with _held(folder, other, GLANCE):
                    pass
        yield


@contextlib.contextmanager
def _held(folder: Location, path: Path, patience: float = 0.0) -> Iterator[None]:
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{folder}: another process is writing this store (it holds {path}). "
            "Wait for it to end, or name another --store."
        ) from None
    try:
        yield
    finally:
        lock.release()
