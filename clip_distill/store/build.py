"""Write a store: shard by shard, resumable, by one process or many, with the same bytes in the end.

A table's items (images, or unique captions) are cut into shards of fixed size before anything runs (`plan.json`). A
shard is written aside and renamed, so a kill at any moment loses at most the shard being written, and running the same
command again does the shards that are missing. With several processes, shard k belongs to process k mod WORLD_SIZE;
they never talk to each other: whoever finds every shard in place writes the manifest, and all would write the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from clip_distill.data.tokens import Ragged
from clip_distill.files import read_json, sha256, write_json
from clip_distill.store.table import MANIFEST, Manifest, Store, StoreError, require_same

PLAN = "plan.json"


@dataclass
class Shard:
    """The rows of one shard, in order.

    Args:
        ids: [N] image ids or captions.
        views: V arrays [N, D].
        tokens: The captions' tokens; None for images.
        skipped: Id → reason, of items that got no row.
    """

    ids: list[str]
    views: list[NDArray[Any]]
    tokens: Ragged | None = None
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Shard `number` is to hold the items `start` … `stop`."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"


EmbedParts = Callable[[pa.Table, list[Part]], Iterator[tuple[Part, Shard]]]


def process_rank() -> tuple[int, int]:
    """(rank, world size) as torchrun or SLURM state them; (0, 1) for a process on its own."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def build_table(
    folder: Path, made_by: Manifest, items: pa.Table, embed_parts: EmbedParts, shard_rows: int
) -> Store | None:
    """Make, continue or extend one table.

    Args:
        folder: Where the table lies.
        made_by: The manifest, with `rows`, `shards` and `skipped` still empty.
        items: One row per image or unique caption; its first column is the id.
        embed_parts: Runs the teacher over the items of the given parts and yields each part's shard when it is done.
        shard_rows: Items per shard.

    Returns:
        The finished table; None where other processes still have shards to write.

    Raises:
        StoreError: The folder holds something made otherwise, or another process is writing it.
    """
    rank, world = process_rank()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".lock-{rank}-of-{world}", timeout=0)
    try:
        with lock:
            return _build(folder, made_by, items, embed_parts, shard_rows, rank, world)
    except Timeout:
        raise StoreError(
            f"{folder}: another process is writing this store (it holds {lock.lock_file}). "
            "Wait for it to end, or name another --store."
        ) from None
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        free = shutil.disk_usage(folder).free // 2**20
        raise StoreError(
            f"{folder}: the disk is full ({free} MiB free). Finished shards are safe: make room and run the same command again."
        ) from error


def _build(
    folder: Path, made_by: Manifest, items: pa.Table, embed_parts: EmbedParts, shard_rows: int, rank: int, world: int
) -> Store | None:
    done = _finished(folder, made_by)
    first = 0
    if done is not None:
        items = _not_yet_in(done, items)
        if len(items) == 0:
            return done
        first = len(done.manifest.shards)
    parts = _plan(folder, made_by, items, shard_rows, first)
    for leftover in folder.glob(f".shard-*-rank{rank}.tmp"):
        shutil.rmtree(leftover)  # of a killed process; the lock says that none is alive
    mine = [part for part in parts if part.number % world == rank and not (folder / part.name).is_dir()]
    for part, shard in embed_parts(items, mine):
        write_shard(folder, part, shard, made_by.dtype, rank)
    numbers = range(first + len(parts))
    if all((folder / Part(number, 0, 0).name).is_dir() for number in numbers):
        return _finish(folder, made_by, numbers)
    return None


def _finished(folder: Path, made_by: Manifest) -> Store | None:
    """The table as it stands, if it was finished before; made by the same teacher and views, or an error."""
    if not (folder / MANIFEST).is_file():
        return None
    store = Store(folder)
    fix = "Name another --store for another teacher or other views; a store never changes what made it."
    require_same(str(folder), made_by.fingerprint(), store.manifest.fingerprint(), fix)
    return store


def _not_yet_in(store: Store, items: pa.Table) -> pa.Table:
    """Items that have neither a row nor a recorded reason for having none."""
    shards = (store.folder / shard["name"] / "shard.json" for shard in store.manifest.shards)
    skipped = {id for path in shards for id in read_json(path)["skipped"]}
    new = store.find(items.column(0)) < 0
    if skipped:
        new &= ~np.isin(np.asarray(items.column(0).to_pylist(), dtype=object), list(skipped))
    return items.filter(pa.array(new))


def _plan(folder: Path, made_by: Manifest, items: pa.Table, shard_rows: int, first: int) -> list[Part]:
    """Cut the items into parts, and hold a continued run to the plan of the run that began it."""
    digest = hashlib.sha256()
    for id in items.column(0).to_pylist():
        digest.update(id.encode("utf-8", "surrogatepass") + b"\0")
    plan = made_by.fingerprint() | {
        "items": len(items),
        "items_sha256": digest.hexdigest(),
        "shard_rows": shard_rows,
        "first_shard": first,
    }
    path = folder / PLAN
    if path.is_file() and read_json(path)["first_shard"] == first:
        fix = "Give the data and options of the run that began it, or delete the folder to start anew."
        require_same(f"{folder}, unfinished,", plan, read_json(path), fix)
    else:
        write_json(path, plan)
    starts = range(0, len(items), shard_rows)
    return [Part(first + i, start, min(start + shard_rows, len(items))) for i, start in enumerate(starts)]


def write_shard(folder: Path, part: Part, shard: Shard, dtype: str, rank: int = 0) -> None:
    """Write one shard aside, then rename its folder into place.

    Raises:
        StoreError: A number does not fit the store's dtype.
    """
    aside = folder / f".{part.name}-rank{rank}.tmp"
    aside.mkdir()
    pq.write_table(pa.table({"id": pa.array(shard.ids, pa.large_string())}), aside / "rows.parquet")
    for number, view in enumerate(shard.views):
        with np.errstate(over="ignore"):
            stored = view.astype(dtype)
        if not np.isfinite(stored).all():
            raise StoreError(
                f"{folder}: the teacher gave numbers that {dtype} can't hold (largest {np.abs(view).max():.3g}). "
                "Use --dtype float32; if it says so again, the teacher gives NaN: try --precision fp32."
            )
        np.save(aside / f"view-{number:03d}.npy", stored)
    if shard.tokens is not None:
        np.save(aside / "tokens.npy", shard.tokens.flat)
        np.save(aside / "offsets.npy", shard.tokens.offsets)
    sums = {path.name: sha256(path) for path in sorted(aside.iterdir())}
    record = {"name": part.name, "rows": len(shard.ids), "skipped": shard.skipped, "sha256": sums}
    write_json(aside / "shard.json", record)
    for path in aside.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    aside.rename(folder / part.name)


def _finish(folder: Path, made_by: Manifest, numbers: range) -> Store:
    """Gather the shards' records into the manifest, which makes the table readable."""
    records = [read_json(folder / Part(number, 0, 0).name / "shard.json") for number in numbers]
    skipped = Counter(reason for record in records for reason in record.pop("skipped").values())
    rows = sum(record["rows"] for record in records)
    manifest = replace(made_by, rows=rows, shards=records, skipped=dict(sorted(skipped.items())))
    write_json(folder / MANIFEST, asdict(manifest))
    return Store(folder)
