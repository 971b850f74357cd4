"""Batches of (photo, caption) pairs, for two students that train together, each with its stored teacher embedding.

Shapes: C captions in the data's files, P pairs, B batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clip_distill.batches.datasets import Batch, Captions, Images
from clip_distill.batches.order import Items, plain
from clip_distill.corpus.pairs import joined, places
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say


class PairBatch(NamedTuple):
    """What one step sees.

    Args:
        image: Views of the pairs' photos, and the teacher's embeddings of these very views.
        text: The pairs' captions, and the teacher's embeddings of them.
        rows: [B] int64, which pairs these are.
    """

    image: Batch
    text: Batch
    rows: Tensor


class PhotoCaptions(Dataset[Any]):
    """Every caption of every photo, each as a sample of its own: a photo with five captions is in five pairs.

    Args:
        images: Photos with stored targets.
        captions: Captions with stored targets.
        pairs: [P, 2] a row of the photos, and one of the captions.
    """

    def __init__(self, images: Images, captions: Captions, pairs: NDArray[np.int64]) -> None:
        self.images, self.captions, self.pairs = images, captions, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, items: Items) -> PairBatch:
        rows, views = items.T.copy()
        photos, captions = self.pairs[rows].T
        image = self.images[np.stack([photos, views], axis=1)]
        return PairBatch(image, self.captions[plain(captions)], torch.from_numpy(rows))


def couple(images: Images, captions: Captions, table: pa.Table) -> PhotoCaptions:
    """Join photos and captions, both with stored targets, through the captions that belong to photos.

    Args:
        images: Training photos.
        captions: Training captions.
        table: [C] of the training split: `text`, and `image_id`, null for a caption without a photo.

    Raises:
        ValueError: No caption belongs to one of the photos.
    """
    assert captions.store is not None
    texts = captions.store.ids.take(pa.array(captions.store_rows))
    pairs = joined(places(table.column("image_id"), images.images.column("id")), places(table.column("text"), texts))
    if not len(pairs):
        raise InvalidValue(
            f"tower both: expected training captions of training photos, both in the store, found none of {len(table)} "
            "(captions in a TSV without image names belong to no photo). Train the towers one at a time"
        )
    photos, texts_used = (len(np.unique(column)) for column in pairs.T)
    say(f"train: {len(pairs):,} pairs of {photos:,} photos and {texts_used:,} captions")
    return PhotoCaptions(images, captions, pairs)
