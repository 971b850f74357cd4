"""A packed copy of rendered views, for training of many epochs: neither files to open, nor photos to decode.

    DIR/
      manifest.json      what it is a copy of, written last; a folder without it is unfinished
      plan.json          the same, while it is being made
      shard-00000.bin    uint8 [rows, V, S, S, 3], photo by photo in the data's order; no header
                         (of features: float16 [rows, V, s, s, C])

A shard is written aside and renamed, so a kill loses the shards being written, and the next run makes what is missing.
One process makes the copy while others wait, on this machine or on any that shares the folder.
Shapes: N photos, V views, B batch, S image side (height and width where they differ), s and C of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.store.arrays import open_files, raw, read_into
from clip_distill.store.manifest import StoreError

MANIFEST, PLAN = "manifest.json", "plan.json"
SHARD_BYTES = 2**26
FIX = "Name another folder, delete this one, or leave --loader.packed (--loader.features) out."


@dataclass(frozen=True)
class Contents:
    """What a packed copy holds.

    Args:
        rows: N.
        views: V.
        height: Of a view, in pixels.
        width: Of a view, in pixels.
        made_from: All that decides the pixels, flat: two copies with the same have the same pixels.
        channels: 3 of a view; C of a feature map.
        dtype: numpy's name: uint8 of pixels, float16 of features.
    """

    rows: int
    views: int
    height: int
    width: int
    made_from: dict[str, Any]
    channels: int = 3
    dtype: str = "uint8"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a copy to serve."""
        shape = {"rows": self.rows, "views": self.views, "height": self.height, "width": self.width}
        return {"format": 2, **shape, "channels": self.channels, "dtype": self.dtype, **self.made_from}

    @property
    def view_bytes(self) -> int:
        return self.height * self.width * self.channels * np.dtype(self.dtype).itemsize

    @property
    def shard_rows(self) -> int:
        return max(1, SHARD_BYTES // (self.views * self.view_bytes))

    def shards(self) -> list[range]:
        """Rows of each shard."""
        size = self.shard_rows
        return [range(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]

    def shard_bytes(self, rows: range) -> int:
        return len(rows) * self.views * self.view_bytes


class Packed:
    """Reads a finished copy. It may be sent to worker processes, which open its files anew.

    Args:
        folder: Of the copy.
        contents: What it holds.

    Raises:
        StoreError: A file of it is missing or not whole.
    """

    def __init__(self, folder: Path, contents: Contents) -> None:
        self.folder, self.contents = folder, contents
        for number, rows in enumerate(contents.shards()):
            if not is_whole(folder, number, contents.shard_bytes(rows)):
                raise StoreError(
                    f"{shard_path(folder, number)}: expected a file of {contents.shard_bytes(rows):,} bytes, found "
                    f"none or another size. Delete {folder / MANIFEST}: the next run makes what is missing"
                )
        self._open = lru_cache(open_files())(self._open_shard)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open = lru_cache(open_files())(self._open_shard)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """[B, 3, S, S], or [B, C, s, s] of features, channels last in memory."""
        contents = self.contents
        out = np.empty((len(rows), contents.view_bytes), np.uint8)
        shards, places = np.divmod(rows, contents.shard_rows)
        offsets = (places * contents.views + views) * contents.view_bytes
        for item, (shard, offset) in enumerate(zip(shards.tolist(), offsets.tolist(), strict=True)):
            read_into(raw(out[item]), self._open(shard), offset)
        shape = (-1, contents.height, contents.width, contents.channels)
        return torch.from_numpy(out.view(contents.dtype)).view(shape).permute(0, 3, 1, 2)

    def _open_shard(self, number: int) -> IO[bytes]:
        return open(shard_path(self.folder, number), "rb", buffering=0)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.bin"


def is_whole(folder: Path, number: int, size: int) -> bool:
    """Whether a shard is there; it was renamed when it was whole, so another size means that somebody cut it."""
    path = shard_path(folder, number)
    return path.is_file() and path.stat().st_size == size
