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

from clip_distill.data.layout import Split
from clip_distill.data.module import Batch
from clip_distill.store.table import PHOTOS, Store
from clip_distill.towers import Tower
from clip_distill.validation import Validation


class RandomStore(Store):
    """In place of the store that is still to be made: any row, at any view, random numbers [B, D]."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def embeddings(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[Any]:
        return np.random.default_rng(0).standard_normal((len(rows), self.dim), np.float32).astype(np.float16)

    def photos(self, rows: NDArray[np.int64]) -> pa.Table:
        return pa.table([pa.nulls(len(rows), kind) for kind in PHOTOS.types], schema=PHOTOS)


def random_validation(tower: Tower, split: Split, dim: int) -> Validation:
    """The whole validation set's pairs, with random embeddings.

    Raises:
        ValueError: No caption belongs to a photo.
    """
    images, captions = split.require_images(), split.require_captions()
    paired = captions.filter(pc.is_valid(captions.column("image_id")))
    if not len(paired):
        raise ValueError(
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
