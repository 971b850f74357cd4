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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_distill.store.remote import Location, load_json, locate, save_json
from clip_distill.store.table import MANIFEST, Manifest, Store, StoreError, require_same, view_file
from clip_distill.store.write import RECORD, Shard, add_views, only_writer, write_shard

PLAN = "plan.json"
CHUNK = 65536  # ids held as Python objects at a time


@dataclass(frozen=True)
class Part:
    """Shard `number` is to hold the items `start` … `stop`."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return shard_name(self.number)


# the items, the parts of them that are wanted, and which views of each
EmbedParts = Callable[[pa.Table, list[Part], range], Iterator[tuple[Part, Shard]]]


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def process_rank() -> tuple[int, int]:
    """(rank, world size) as torchrun or SLURM state them; (0, 1) for a process on its own."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def build_table(
    folder: Location | str,
    made_by: Manifest,
    items: pa.Table,
    embed_with: Callable[[Manifest], EmbedParts],
    shard_rows: int,
) -> Store | None:
    """Make, continue or extend one table.

    Args:
        folder: Where the table lies; a path or a URL.
        made_by: The manifest, with `rows`, `shards` and `skipped` still empty. Fewer views than the table has leave
            them as they are; more are added to the rows that are there.
        items: One row per image or unique caption; its first column is the id.
        embed_with: Gives, for what the table is made by in the end, the function that runs the teacher over the items
            of some parts and yields each part's shard when it is done.
        shard_rows: Items per shard.

    Returns:
        The finished table; None where other processes still have shards to write.

    Raises:
        StoreError: The folder holds something made otherwise, another process is writing it, or it can't be written.
    """
    if shard_rows < 1:
        raise ValueError(f"expected shard_rows ≥ 1, found {shard_rows}")
    folder = locate(folder)
    rank, world = process_rank()
    with only_writer(folder, rank, world):
        done = Store(folder) if (folder / MANIFEST).is_file() else None
        if done is not None:
            made_by = _continued(folder, made_by, done.manifest)
        return _Build(folder, made_by, done, rank, world).run(items, embed_with(made_by), shard_rows)


def _continued(folder: Location, made_by: Manifest, stored: Manifest) -> Manifest:
    """What to go on with on a finished table: all of its views, and those of `made_by` that it lacks.

    Raises:
        StoreError: It was made by another teacher, or its augmented views otherwise.
    """
    # a plain view is the same under any augmentation and seed
    if made_by.views == 1:
        made_by = replace(made_by, augment=stored.augment, seed=stored.seed)
    elif stored.views == 1:
        stored = replace(stored, augment=made_by.augment, seed=made_by.seed)
    views = max(made_by.views, stored.views)
    made_by, stored = replace(made_by, views=views), replace(stored, views=views)
    fix = "Name another --store for another teacher or other views; a store never changes what made it."
    require_same(str(folder), made_by.fingerprint(), stored.fingerprint(), fix)
    return made_by


@dataclass(frozen=True)
class _Build:
    """One process's work on one table.

    Args:
        folder: The table.
        made_by: What it is to be made by.
        done: The finished table that is extended; None for a new one.
        rank: This process.
        world: Processes.
    """

    folder: Location
    made_by: Manifest
    done: Store | None
    rank: int
    world: int

    def run(self, items: pa.Table, embed_parts: EmbedParts, shard_rows: int) -> Store | None:
        done = self.done
        new = items if done is None else _not_yet_in(done, items)
        first = 0 if done is None else len(done.manifest.shards)
        old_views = self.made_by.views if done is None else done.manifest.views
        if done is not None and len(new) == 0 and old_views == self.made_by.views:
            return done
        starts = range(0, len(new), shard_rows)
        parts = [Part(first + i, start, min(start + shard_rows, len(new))) for i, start in enumerate(starts)]
        self._hold_to_plan(new, shard_rows, first)
        if isinstance(self.folder, Path):
            for leftover in self.folder.glob(f".shard-*-rank{self.rank}.tmp"):
                shutil.rmtree(leftover)  # of a killed process; the lock says that none is alive
        if done is not None and old_views < self.made_by.views:
            self._add_views(done, items, embed_parts, range(old_views, self.made_by.views))
        there = self._shards_there()
        mine = [part for part in parts if part.number % self.world == self.rank and part.number not in there]
        for part, shard in embed_parts(new, mine, range(self.made_by.views)):
            write_shard(self.folder, part.name, shard, self.made_by.dtype, self.rank)
        return self._finish(first, parts)

    def _hold_to_plan(self, items: pa.Table, shard_rows: int, first: int) -> None:
        """Hold a continued run to the plan of the run that began it; a plan is over when its manifest is written."""
        digest = hashlib.sha256()
        for start in range(0, len(items), CHUNK):
            ids = items.column(0).slice(start, CHUNK).to_pylist()
            digest.update(b"".join(id.encode() + b"\0" for id in ids))
        extends = None if self.done is None else self.done.digest
        plan: dict[str, Any] = self.made_by.fingerprint() | {
            "items": len(items),
            "items_sha256": digest.hexdigest(),
            "shard_rows": shard_rows,
            "first_shard": first,
            "extends": extends,
        }
        path = self.folder / PLAN
        begun = load_json(path) if path.is_file() else {"extends": ""}
        if begun.get("extends") == extends:
            fix = "Give the data and options of the run that began it, or delete the folder to start anew."
            if self.done is not None:
                fix = (
                    "Give the data and options of the run that began to extend it, or delete its plan.json and the "
                    f"folders from {shard_name(first)} on: the {len(self.done):,} finished rows stay."
                )
            require_same(f"{self.folder}, unfinished,", plan, begun, fix)
        else:
            save_json(path, plan)

    def _shards_there(self) -> set[int]:
        """Numbers of the shards that are complete."""
        return {int(path.parent.name.removeprefix("shard-")) for path in self.folder.glob(f"shard-*/{RECORD}")}

    def _add_views(self, done: Store, items: pa.Table, embed_parts: EmbedParts, numbers: range) -> None:
        """Give this process's share of the shards in `done` the views that they lack."""
        shards = range(self.rank, len(done.manifest.shards), self.world)
        lacking = [shard for shard in shards if not self._has_all_views(self._record(shard))]
        rows = [np.arange(done.starts[shard], done.starts[shard + 1]) for shard in lacking]
        ids = done.ids.take(pa.array(np.concatenate([np.empty(0, np.int64), *rows])))
        place = pc.index_in(ids, value_set=_one_array(items.column(0)))
        if place.null_count:
            lost = ids.filter(place.is_null())
            raise StoreError(
                f"{self.folder}: expected the photos of all its rows, to add {len(numbers)} views to them; found "
                f"{len(lost)} gone from the data, for instance {lost[0].as_py()!r}. "
                "Bring them back, or name another --store."
            )
        bounds = np.cumsum([0, *map(len, rows)])
        parts = [Part(shard, int(bounds[i]), int(bounds[i + 1])) for i, shard in enumerate(lacking)]
        for part, shard in embed_parts(items.take(place), parts, numbers):
            add_views(self.folder, part.name, shard, numbers, self.made_by.dtype)

    def _record(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = load_json(self.folder / shard_name(number) / RECORD)
        return record

    def _has_all_views(self, record: dict[str, Any]) -> bool:
        return view_file(self.made_by.views - 1) in record["sha256"]

    def _finish(self, first: int, parts: list[Part]) -> Store | None:
        """Gather the records of all shards into the manifest, which makes the table readable."""
        count = first + len(parts)
        if not set(range(count)) <= self._shards_there():
            return None
        records = [self._record(number) for number in range(count)]
        if not all(map(self._has_all_views, records)):
            return None
        for part, record in zip(parts, records[first:], strict=True):
            expected, found = part.stop - part.start, record["rows"] + len(record["skipped"])
            if found != expected:
                raise StoreError(
                    f"{self.folder / part.name}: expected a shard of {expected} items, found one of {found}. "
                    f"Was {MANIFEST} removed? Delete the folder and start anew."
                )
        skipped = Counter(reason for record in records for reason in record.pop("skipped").values())
        rows = sum(record["rows"] for record in records)
        manifest = replace(self.made_by, rows=rows, shards=records, skipped=dict(sorted(skipped.items())))
        save_json(self.folder / MANIFEST, asdict(manifest))
        return Store(self.folder)


def _not_yet_in(store: Store, items: pa.Table) -> pa.Table:
    """Items that have neither a row nor a recorded reason for having none."""
    new = store.find(items.column(0)) < 0
    if store.manifest.skipped:
        records = (load_json(store.folder / shard["name"] / RECORD) for shard in store.manifest.shards)
        skipped = pa.array([id for record in records for id in record["skipped"]], pa.large_string())
        new &= ~np.asarray(pc.is_in(items.column(0).cast(pa.large_string()), value_set=skipped))
    return items.filter(pa.array(new))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])
