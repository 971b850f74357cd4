"""In place of a store that is still to be made: random numbers of the right shape, which cost as much to learn from.

Shapes: N rows, B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from clip_distill.batches.datasets import Batch
from clip_distill.corpus.layout import Split
from clip_distill.evaluation.holdout import HeldOut
from clip_distill.store.table import PHOTOS, Store
from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.ragged import Ragged
from clip_distill.towers.spec import Tower
from clip_distill.train.validation import Validation

SHARD_ROWS = 8192


class RandomStore(Store):
    """In place of the store that is still to be made: its ids, and random numbers for any row at any view.

    All else is the store's own code, so that looking ids up takes the time and memory that it will take.

    Args:
        dim: D.
        ids: [N] strings.
        tokens: The teacher's, of a text store, N rows.
    """

    def __init__(self, dim: int, ids: pa.Array, tokens: Ragged | None = None) -> None:
        self.dim, self.known = dim, ids
        self.starts = np.append(np.arange(0, len(ids), SHARD_ROWS), len(ids))
        if tokens is not None:
            self.__dict__["tokens"] = tokens  # kept as the store keeps its own, once they are read

    def __len__(self) -> int:
        return len(self.known)

    def embeddings(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[Any]:
        """[B, D] float16."""
        return np.random.default_rng(0).standard_normal((len(rows), self.dim), np.float32).astype(np.float16)

    @property
    def _shards(self) -> int:
        return len(self.starts) - 1

    def _shard_ids(self, shard: int) -> pa.Array:
        return self.known.slice(self.starts[shard], self.starts[shard + 1] - self.starts[shard])

    def _shard_photos(self, shard: int) -> pa.Table:
        rows = self.starts[shard + 1] - self.starts[shard]
        return pa.table([pa.nulls(rows, kind) for kind in PHOTOS.types], schema=PHOTOS)


def random_validation(tower: Tower, split: Split, dim: int, held: int) -> Validation | HeldOut:
    """The whole validation set's pairs, with random embeddings; of data without one, as many as are held out.

    Raises:
        ValueError: No caption belongs to a photo.
    """
    if split.alone:
        return HeldOut(torch.randn(held, dim))
    images, captions = split.require_images(), split.require_captions()
    paired = captions.filter(pc.is_valid(captions.column("image_id")))
    if not len(paired):
        raise InvalidValue(
            f"expected captions of the validation photos, found none that name one; {split.captions_sought}"
        )
    texts = paired.column("text").unique()
    ids = images.column("id").combine_chunks()
    rows = pc.index_in(paired.column("text"), texts), pc.index_in(paired.column("image_id"), ids)
    own, other = len(images), len(texts)
    if tower == "text":
        own, other = other, own
    caption_row, image_row = (torch.from_numpy(np.asarray(row).astype(np.int64)) for row in rows)
    return Validation(tower, torch.randn(own, dim), torch.randn(other, dim), caption_row, image_row)


def random_pairs(tower: Tower, count: int, dim: int) -> Validation:
    """As many photos as captions, each the other's: what the measured batches are ranked against."""
    return Validation(tower, torch.randn(count, dim), torch.randn(count, dim), torch.arange(count), torch.arange(count))


class SameBatch(IterableDataset[Batch]):
    """One batch, over and over."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch
