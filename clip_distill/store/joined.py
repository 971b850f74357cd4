"""Several tables of one teacher's tower as one: their rows, one table's after the other's.

Shapes: N rows of all tables, B batch, D embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_distill.store.manifest import require_same, teacher_fingerprint
from clip_distill.store.table import Store
from clip_distill.tokens.ragged import Ragged, starts


class Joined(Store):
    """All rows of all tables; an id that several have is the first one's.

    Args:
        tables: Of one tower, with one view each.

    Raises:
        StoreError: They are of different teachers.
    """

    def __init__(self, tables: Sequence[Store]) -> None:
        self.tables, first = list(tables), tables[0]
        for table in tables[1:]:
            fix = "Run `clip-distill embed` with one teacher for both."
            expected, found = (teacher_fingerprint(each.manifest.teacher) for each in (first, table))
            require_same(f"{table.folder}, beside {first.folder},", expected, found, fix)
        self.folder = first.folder
        self.starts = np.cumsum([0, *map(len, tables)])
        self.manifest = replace(first.manifest, rows=int(self.starts[-1]), shards=[])
        self.digest = hashlib.sha256("".join(table.digest for table in tables).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state

    @cached_property
    def ids(self) -> pa.Array:
        return pa.concat_arrays([table.ids for table in self.tables])

    def find(self, ids: pa.Array | pa.ChunkedArray | list[str]) -> NDArray[np.int64]:
        found = self.tables[0].find(ids)
        for table, start in zip(self.tables[1:], self.starts[1:-1].tolist(), strict=True):
            there = table.find(ids)
            found = np.where((found < 0) & (there >= 0), there + start, found)
        return found

    def embeddings(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[Any]:
        rows = np.asarray(rows)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        out = np.empty((len(rows), self.manifest.dim), self.manifest.dtype)
        for place, table in enumerate(self.tables):
            mine = owner == place
            out[mine] = table.embeddings(rows[mine] - self.starts[place])
        return out

    def all_embeddings(self, view: int = 0) -> NDArray[Any]:
        return np.concatenate([table.all_embeddings().astype(self.manifest.dtype) for table in self.tables])

    @cached_property
    def tokens(self) -> Ragged:
        parts = [table.tokens for table in self.tables]
        flat = np.concatenate([part.flat for part in parts])
        return Ragged(flat, starts(np.concatenate([part.lengths for part in parts])))
