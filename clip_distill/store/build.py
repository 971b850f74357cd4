"""Write a store: shard by shard, resumable, by one process or many, with the same bytes in the end.

A table's items (images, or unique captions) are cut into shards of fixed size before anything runs (`plan.json`). A
shard is written aside and renamed, so a kill at any moment loses at most the shard being written, and running the same
command again does the shards that are missing. With several processes, shard k belongs to process k mod WORLD_SIZE;
they never talk to each other: whoever finds every shard in place writes the manifest, and all would write the same.
"""

from __future__ import annotations

import itertools
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
from numpy.typing import NDArray

from clip_distill.store.manifest import MANIFEST, Manifest, StoreError, require_same
from clip_distill.store.table import Store, view_file
from clip_distill.store.write import RECORD, Shard, add_views, digest_ids, only_writer, read_ids, write_ids, write_shard
from clip_distill.system.errors import InvalidValue
from clip_distill.system.remote import Location, load_json, locate, save_json

PLAN = "plan.json"
PLAN_ITEMS = "plan-items.parquet"


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

Readable = Callable[[pa.Table], NDArray[np.bool_]]  # which of some items could be read now


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def process_rank() -> tuple[int, int]:
    """(rank, world size) as torchrun or SLURM's srun state them; (0, 1) for a process on its own.

    sbatch sets SLURM_NTASKS for its script, too, which is one process; SLURM_STEP_ID is there below srun alone.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ and (rank == "RANK" or "SLURM_STEP_ID" in os.environ):
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def build_table(
    folder: Location | str,
    made_by: Manifest,
    items: pa.Table,
    embed_with: Callable[[Manifest], EmbedParts],
    shard_rows: int,
    readable: Readable | None = None,
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
        readable: Says which of the items that were skipped on a finished table can be read now, and so are added;
            without it, none is.

    Returns:
        The finished table; None where other processes still have shards to write.

    Raises:
        StoreError: The folder holds something made otherwise, another process is writing it, or it can't be written.
    """
    if shard_rows < 1:
        raise InvalidValue(f"expected shard_rows ≥ 1, found {shard_rows}")
    folder = locate(folder)
    rank, world = process_rank()
    with only_writer(folder, rank, world):
        done = Store(folder) if (folder / MANIFEST).is_file() else None
        if done is not None:
            made_by = _continued(folder, made_by, done.manifest)
        return _Build(folder, made_by, done, readable, rank, world).run(items, embed_with(made_by), shard_rows)


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
        readable: See `build_table`.
        rank: This process.
        world: Processes.
    """

    folder: Location
    made_by: Manifest
    done: Store | None
    readable: Readable | None
    rank: int
    world: int

    def run(self, items: pa.Table, embed_parts: EmbedParts, shard_rows: int) -> Store | None:
        done = self.done
        new = items if done is None else _not_yet_in(done, items, self.readable)
        first = 0 if done is None else len(done.manifest.shards)
        old_views = self.made_by.views if done is None else done.manifest.views
        if done is not None and len(new) == 0 and old_views == self.made_by.views:
            self._forget_items()  # of a run that was killed once its manifest was there
            return done
        planned = self._hold_to_plan(items, new, shard_rows, first)
        starts = range(0, len(planned), shard_rows)
        parts = [Part(first + i, start, min(start + shard_rows, len(planned))) for i, start in enumerate(starts)]
        if isinstance(self.folder, Path):
            for leftover in self.folder.glob(f".shard-*-rank{self.rank}.tmp"):
                shutil.rmtree(leftover)  # of a killed process; the lock says that none is alive
        if done is not None and old_views < self.made_by.views:
            self._add_views(done, items, embed_parts, range(old_views, self.made_by.views))
        there = self._shards_there()
        mine = [part for part in parts if part.number % self.world == self.rank and part.number not in there]
        for part, shard in embed_parts(planned, mine, range(self.made_by.views)):
            write_shard(self.folder, part.name, shard, self.made_by.dtype, self.rank)
        table = self._finish(first, parts, planned)
        if table is None or planned is new:
            return table
        return replace(self, done=table).run(items, embed_parts, shard_rows)

    def _hold_to_plan(self, items: pa.Table, new: pa.Table, shard_rows: int, first: int) -> pa.Table:
        """Hold a continued run to the plan of the run that began it; a plan is over when its manifest is written.

        Returns:
            What is to be done first: `new`, or what was new to that run, if the data still have all of it.
        """
        extends = None if self.done is None else self.done.digest
        plan: dict[str, Any] = self.made_by.fingerprint() | {
            "items": len(new),
            "items_sha256": digest_ids(new.column(0)),
            "shard_rows": shard_rows,
            "first_shard": first,
            "extends": extends,
        }
        path = self.folder / PLAN
        begun = load_json(path) if path.is_file() else {"extends": ""}
        if begun.get("extends") == extends:
            if begun["items_sha256"] != plan["items_sha256"] and (old := self._planned(items, begun)) is not None:
                new = old
                plan |= {"items": len(old), "items_sha256": begun["items_sha256"]}
            fix = "Give the data and options of the run that began it, or delete the folder to start anew."
            if self.done is not None:
                fix = (
                    "Give the data and options of the run that began to extend it, or delete its plan.json and the "
                    f"folders from {shard_name(first)} on: the {len(self.done):,} finished rows stay."
                )
            require_same(f"{self.folder}, unfinished,", plan, begun, fix)
        else:
            write_ids(self.folder / PLAN_ITEMS, new.column(0), self.rank)
            save_json(path, plan)
        return new

    def _planned(self, items: pa.Table, begun: dict[str, Any]) -> pa.Table | None:
        """The items of the run that began; None where the data lack some of them."""
        path = self.folder / PLAN_ITEMS
        if not path.is_file():
            return None
        ids = read_ids(path)
        place = pc.index_in(ids.cast(items.column(0).type), value_set=_one_array(items.column(0)))
        if digest_ids(ids) != begun["items_sha256"] or place.null_count:
            return None
        return items.take(place)

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

    def _finish(self, first: int, parts: list[Part], planned: pa.Table) -> Store | None:
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
        skipped = Counter(reason for record in records[first:] for reason in record["skipped"].values())
        if self.done is not None:
            before = _skipped(self.done)
            again = pc.is_in(pa.array(before.keys(), pa.large_string()), value_set=_strings(planned.column(0)))
            tried_again = itertools.compress(before.values(), again.to_pylist())
            skipped += Counter(self.done.manifest.skipped) - Counter(tried_again)
        for record in records:
            del record["skipped"]
        rows = sum(record["rows"] for record in records)
        manifest = replace(self.made_by, rows=rows, shards=records, skipped=dict(sorted(skipped.items())))
        save_json(self.folder / MANIFEST, asdict(manifest))
        self._forget_items()
        return Store(self.folder)

    def _forget_items(self) -> None:
        """Remove a plan's items, since captions take room, once the plan is over."""
        if isinstance(self.folder, Path) and os.access(self.folder, os.W_OK):
            (self.folder / PLAN_ITEMS).unlink(missing_ok=True)


def _not_yet_in(store: Store, items: pa.Table, readable: Readable | None) -> pa.Table:
    """Items that have no row, and no recorded reason for having none or one that is gone."""
    new = store.find(items.column(0)) < 0
    if store.manifest.skipped:
        skipped = pa.array(_skipped(store).keys(), pa.large_string())
        skipped_rows = np.flatnonzero(new & np.asarray(pc.is_in(_strings(items.column(0)), value_set=skipped)))
        new[skipped_rows] = False if readable is None else readable(items.take(pa.array(skipped_rows)))
    return items.filter(pa.array(new))


def _skipped(store: Store) -> dict[str, str]:
    """Id → the latest reason, of all items that were skipped once; some may have a row by now."""
    records = (load_json(store.folder / shard["name"] / RECORD) for shard in store.manifest.shards)
    return {id: reason for record in records for id, reason in record["skipped"].items()}


def _strings(column: pa.ChunkedArray) -> pa.Array:
    return _one_array(column.cast(pa.large_string()))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])
