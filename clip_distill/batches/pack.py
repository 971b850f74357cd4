"""Make a packed copy of rendered views, or of what frozen stages make of them, that `batches.packed` reads.

A shard is written aside and renamed, so a kill loses the shards being written, and the next run makes what is missing.
One process makes the copy while others wait, on this machine or on any that shares the folder.
Shapes: V views, C channels, S image side.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import Dataset

from clip_distill.batches.datasets import Images
from clip_distill.batches.packed import FIX, MANIFEST, PLAN, Contents, Packed, is_whole, shard_path
from clip_distill.store.arrays import raw
from clip_distill.store.manifest import StoreError, require_same
from clip_distill.store.write import digest_ids
from clip_distill.system.cores import cores
from clip_distill.system.feed import Feed
from clip_distill.system.files import read_json, write_json
from clip_distill.system.talk import progress, say

Render = Callable[[int, range], Tensor]  # a photo's row, and its V views → [V, C, S, S] as `Contents` says


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
    loader: Feed[int] = Feed(dataset, batch_size=None, sampler=missing, num_workers=workers)
    with progress(total=contents.rows, desc="packing", unit=" photos", smoothing=0) as bar:
        bar.update(contents.rows - sum(len(dataset.shards[number]) for number in missing))
        for rows in loader:
            bar.update(rows)


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
