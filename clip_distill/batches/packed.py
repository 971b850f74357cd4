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

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from clip_distill.batches.workers import cores
from clip_distill.corpus.report import say
from clip_distill.store.arrays import open_files, raw, read_into
from clip_distill.store.table import StoreError, require_same
from clip_distill.store.write import digest_ids
from clip_distill.system.files import read_json, write_json

if TYPE_CHECKING:
    from clip_distill.batches.datasets import Images

MANIFEST, PLAN = "manifest.json", "plan.json"
SHARD_BYTES = 2**26
FIX = "Name another folder, delete this one, or leave --loader.packed (--loader.features) out."
Render = Callable[[int, range], Tensor]  # a photo's row, and its V views → [V, C, S, S] as `Contents` says


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


class Shards(Dataset[int]):
    """An item is a shard, which is there once the item was asked for; what comes back is how many rows it has."""

    def __init__(self, folder: Path, contents: Contents, render: Render) -> None:
        self.folder, self.contents, self.render, self.shards = folder, contents, render, contents.shards()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> int:
        path, rows = shard_path(self.folder, number), self.shards[number]
        aside = path.with_name(f".{path.name}.tmp")
        try:
            with open(aside, "wb") as file:
                for row in rows:
                    views = self.render(row, range(self.contents.views)).permute(0, 2, 3, 1).contiguous()
                    file.write(raw(views.numpy()))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)  # on a full disk, room is what is needed
            raise StoreError(
                f"{path}: could not write: {error}. Finished shards are safe: make room and run the same command again"
            ) from error
        return len(rows)


def pack_images(folder: Path, images: Images, views: int) -> Packed:
    """A packed copy of the first V views of photos.

    Args:
        folder: Of the copy.
        images: The data set; as far as it knows which photos lie under its ids, the copy is of those.
        views: V.

    Raises:
        StoreError: See `pack`.
    """
    contents = Contents(len(images), views, images.views.height, images.views.width, made_from(images, views))
    return pack(folder, contents, images.render)


def made_from(images: Images, views: int) -> dict[str, Any]:
    """All that decides the pixels of the first V views of photos."""
    digests = b"" if images.digests is None else np.asarray(images.digests.fill_null(0)).tobytes()
    photos = {"ids": digest_ids(images.images.column("id")), "photos": hashlib.sha256(digests).hexdigest()}
    return images.views.made_from(views) | photos


def pack(folder: Path, contents: Contents, render: Render) -> Packed:
    """Open a packed copy; make it first, or go on making it, where there is none.

    Args:
        folder: Of the copy.
        contents: What it is to hold.
        render: Renders the views of a photo, in worker processes, one for each core.

    Raises:
        StoreError: The folder holds a copy of something else, or the disk has not enough room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        for name in (MANIFEST, PLAN):
            if (folder / name).is_file():
                require_same(str(folder), contents.fingerprint, read_json(folder / name), FIX)
        if not (folder / MANIFEST).is_file():
            write_json(folder / PLAN, contents.fingerprint)
            _make(folder, contents, render)
            write_json(folder / MANIFEST, contents.fingerprint)
            (folder / PLAN).unlink()
    return Packed(folder, contents)


def _make(folder: Path, contents: Contents, render: Render) -> None:
    sizes = {number: contents.shard_bytes(rows) for number, rows in enumerate(contents.shards())}
    missing = [number for number, size in sizes.items() if not is_whole(folder, number, size)]
    needed, free = sum(sizes[number] for number in missing), shutil.disk_usage(folder).free
    say(
        f"{folder}: packing {contents.rows:,} photos × {contents.views} views of "
        f"{contents.height}×{contents.width}×{contents.channels} {contents.dtype}: "
        f"{needed / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free"
    )
    if needed > free:
        raise StoreError(
            f"{folder}: expected {needed / 1e9:.2f} GB free for the packed copy, found {free / 1e9:.2f} GB. Make room, "
            "name a folder on another disk, or leave --loader.packed (--loader.features) out"
        )
    dataset = Shards(folder, contents, render)
    workers = min(cores(), len(missing))
    loader = DataLoader(dataset, batch_size=None, sampler=missing, num_workers=workers)
    with tqdm(total=contents.rows, desc="packing", unit=" photos", smoothing=0) as bar:
        bar.update(contents.rows - sum(len(dataset.shards[number]) for number in missing))
        for rows in loader:
            bar.update(rows)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.bin"


def is_whole(folder: Path, number: int, size: int) -> bool:
    """Whether a shard is there; it was renamed when it was whole, so another size means that somebody cut it."""
    path = shard_path(folder, number)
    return path.is_file() and path.stat().st_size == size


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Wait while another process makes the copy; the kernel lets go of the lock when it dies."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{folder}: another process is making this packed copy; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
