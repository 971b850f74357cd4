"""Check a table against its manifest: every file there, every byte as written, every array of the right shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq

from clip_distill.store.table import Store, view_file
from clip_distill.system.remote import Location
from clip_distill.system.talk import progress

CHUNK = 1 << 20


def problems(store: Store) -> list[str]:
    """Read a whole table; one line for each thing that is not as its manifest says."""
    found = []
    rows = sum(shard["rows"] for shard in store.manifest.shards)
    if rows != len(store):
        found.append(f"{store.folder}: manifest says {len(store)} rows, its shards have {rows}")
    title = f"{store.manifest.tower}s, {store.manifest.split}"
    total = sum(expected_bytes(store, record) for record in store.manifest.shards)
    with progress(total=total, desc=title, unit="B", unit_scale=True, smoothing=0) as bar:
        for record in store.manifest.shards:
            found += [f"{store.folder / record['name']}: {line}" for line in shard_problems(store, record, bar)]
    return found


def expected_bytes(store: Store, record: dict[str, Any]) -> int:
    """Bytes of a shard's embeddings, which are nearly all of it."""
    return int(record["rows"] * store.manifest.dim * np.dtype(store.manifest.dtype).itemsize * store.manifest.views)


def shard_problems(store: Store, record: dict[str, Any], bar: Any) -> Iterator[str]:
    """What is wrong with one shard."""
    expected = {"rows.parquet", *(view_file(view) for view in range(store.manifest.views))}
    expected |= {"tokens.npy", "offsets.npy"} if store.manifest.tower == "text" else set()
    yield from (f"no {name} in the manifest" for name in sorted(expected - record["sha256"].keys()))
    for name, digest in record["sha256"].items():
        path = store.folder / record["name"] / name
        if not path.is_file():
            yield f"{name} is missing"
            continue
        found = hash_file(path, bar if name.startswith("view-") else None)
        if found != digest:
            yield f"{name} has changed: expected SHA-256 {digest}, found {found}"
            continue
        with path.open("rb") as file:
            count, wanted = rows_in(file, name), expected_shape(store, record, name)
        if count != wanted:
            yield f"{name}: expected {wanted}, found {count}"


def hash_file(path: Location, bar: Any) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if bar is not None:
                bar.update(len(chunk))
    return digest.hexdigest()


def rows_in(file: IO[bytes], name: str) -> tuple[Any, ...]:
    """Shape of what a file holds, and of an array its dtype, without reading it."""
    if name.endswith(".parquet"):
        return (pq.read_metadata(file).num_rows,)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return (*shape, str(dtype)) if name.startswith("view-") else shape if name == "offsets.npy" else ()


def expected_shape(store: Store, record: dict[str, Any], name: str) -> tuple[Any, ...]:
    """What `rows_in` should say; nothing of tokens, whose number only their offsets know."""
    if name == "rows.parquet":
        return (record["rows"],)
    if name == "offsets.npy":
        return (record["rows"] + 1,)
    return (record["rows"], store.manifest.dim, store.manifest.dtype) if name.startswith("view-") else ()
