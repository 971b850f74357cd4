"""Fewer numbers a sample: one orthogonal map for both towers, and a store of what it keeps of another.

The map's columns span the principal directions of both towers' embeddings (principal component analysis: no other ones
keep more of how samples differ), turned at random within that space, so that every number has an equal share: rounding
to int8 or to one bit then costs each the same (ITQ's start, Gong and Lazebnik, 2011).

Shapes: N rows, V views, D and K the parent's and the reduced embedding, B rows held at a time.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray

from clip_distill.store.build import EmbedParts, Part, build_table
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import Manifest, StoreError, require_same, teacher_fingerprint
from clip_distill.store.table import Store, table_folder
from clip_distill.store.write import Photo, Shard
from clip_distill.system.files import write_bytes
from clip_distill.system.talk import progress
from clip_distill.towers.reduction import MAP_FILE, Reduction, principal, read_reduction
from clip_distill.towers.spec import TOWERS

ROWS = 16_384  # B
TABLES = (*itertools.product(TOWERS, ("train", "val")), ("text", "prompts"))
Floats = NDArray[np.float32]


def tables_of(root: str) -> dict[tuple[str, str], Store]:
    """The finished tables of a store, by tower and split.

    Raises:
        StoreError: There is none.
    """
    found: dict[tuple[str, str], Store] = {}
    for tower, split in TABLES:
        with contextlib.suppress(StoreError):
            found[tower, split] = open_table(root, tower, split)
    if not found:
        raise StoreError(f"{root}: expected a store with a finished table, found none. Run `clip-distill embed`.")
    return found


def one_teacher(root: str, tables: Mapping[tuple[str, str], Store]) -> dict[str, Any]:
    """The record of the teacher that made all tables.

    Raises:
        StoreError: They are of several.
    """
    first, *others = tables.values()
    for table in others:
        require_same(
            f"{root}: {table.folder}",
            teacher_fingerprint(first.manifest.teacher),
            teacher_fingerprint(table.manifest.teacher),
            "Embed again what is of another teacher.",
        )
    return first.manifest.teacher


def directions(tables: Sequence[Store]) -> NDArray[np.float64]:
    """All D principal directions of the tables' embeddings, [D, D], the greatest first; each table counts alike.

    About each table's own mean: what all photos have in common doesn't change which of them is nearest to a caption.
    """
    dim = tables[0].manifest.dim
    spread = np.zeros((dim, dim))
    with progress(total=sum(map(len, tables)), desc="directions", unit=" rows") as bar:
        for table in tables:
            moments, mean = np.zeros((dim, dim)), np.zeros(dim)
            for start in range(0, len(table), ROWS):
                rows = unit(table.embeddings(np.arange(start, min(start + ROWS, len(table)))))
                moments += rows.T @ rows
                mean += rows.sum(axis=0)
                bar.update(len(rows))
            spread += moments / len(table) - np.outer(mean, mean) / len(table) ** 2
    return principal(spread)


def write_reduced(out: Path, tables: dict[tuple[str, str], Store], reduction: Reduction, shard_rows: int) -> None:
    """Write the map, then every table reduced; stopped at any moment, the same call goes on.

    Raises:
        StoreError: `out` holds something made otherwise.
    """
    path = out / MAP_FILE
    if path.is_file() and read_reduction(out).weights_sha256 != reduction.weights_sha256:
        raise StoreError(f"{path}: expected a new folder, or the same reduction to go on with; found another map")
    if not path.is_file():
        facts = {"parent": reduction.parent, "parent_sha256": reduction.parent_sha256}
        write_bytes(path, safetensors.numpy.save({"map": reduction.map}, facts))
    for (tower, split), table in tables.items():
        made_by = replace(
            table.manifest, teacher=reduction.teacher(table.manifest.teacher, out), rows=0, shards=[], skipped={}
        )
        items = pa.table({"id": table.ids, "row": pa.array(np.arange(len(table)))})
        build_table(table_folder(out, tower, split), made_by, items, _read(table, reduction.map), shard_rows)


def _read(table: Store, map: Floats) -> Callable[[Manifest], EmbedParts]:
    """For `build_table`: "embeds" by reducing the parent's rows."""
    tokens = table.tokens if table.manifest.tower == "text" else None

    def read_parts(items: pa.Table, parts: list[Part], numbers: range) -> Iterator[tuple[Part, Shard]]:
        for part in progress(parts, desc=f"{table.folder.name}, reduced", unit=" shards"):
            some = items.slice(part.start, part.stop - part.start)
            rows = np.asarray(some.column("row"))
            views = [table.embeddings(rows, view).astype(np.float32) @ map for view in numbers]
            theirs = None if tokens is None else tokens.take(rows)
            yield part, Shard(some.column("id").to_pylist(), views, theirs, photos=_photos(table, rows))

    return lambda made_by: read_parts


def _photos(table: Store, rows: NDArray[np.int64]) -> list[Photo] | None:
    """Which photos the rows are of, where the parent knows of all of them."""
    known = table.photos(rows) if table.manifest.tower == "image" else None
    if known is None or known.column("digest").null_count:
        return None
    return [Photo(row["digest"], row["bytes"]) for row in known.to_pylist()]


def unit(rows: NDArray[Any]) -> Floats:
    """Each row scaled to length 1, in float32."""
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def int8(rows: Floats) -> Floats:
    """Each row rounded to 255 steps of its own greatest number."""
    step = np.abs(rows).max(axis=1, keepdims=True).clip(1e-12) / 127
    return np.round(rows / step) * step


def one_bit(rows: Floats) -> Floats:
    """The signs alone."""
    return np.where(rows < 0, np.float32(-1), np.float32(1))
