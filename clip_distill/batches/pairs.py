"""What each training sample is paired with, by the teacher's other tower: captions of a photo, or photos of a caption.

Shapes: N rows of the training set, P pairs, B batch, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.corpus.pairs import joined, places
from clip_distill.store.table import Store
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say
from clip_distill.towers.spec import Tower


@dataclass(frozen=True)
class Pairs:
    """The partners of every row, and the store that has their embeddings.

    Args:
        store: The other tower's training table.
        partners: [P] rows of the store, those of one training row after those of the row before it.
        offsets: [N + 1]: row i has `partners[offsets[i]:offsets[i + 1]]`, which may be none.
        seed: Of the draws.
    """

    store: Store
    partners: NDArray[np.int64]
    offsets: NDArray[np.int64]
    seed: int

    def draw(self, rows: Tensor, *key: int) -> Tensor:
        """float32 [B, D], on the device of `rows` [B]: the plain view of one partner each; zeros where there is none.

        Args:
            rows: Of the training set.
            key: Whole numbers that with the seed alone decide the draw, so that a resumed run draws the same.
        """
        places = rows.cpu().numpy()
        counts = self.offsets[places + 1] - self.offsets[places]
        random = np.random.default_rng([self.seed, *key])
        chosen = self.offsets[places] + (random.random(len(places)) * counts).astype(np.int64)
        drawn = np.zeros((len(places), self.store.manifest.dim), np.float32)
        drawn[counts > 0] = self.store.embeddings(self.partners[chosen[counts > 0]])
        return torch.from_numpy(drawn).to(rows.device)


def find_pairs(tower: Tower, ids: pa.Array | pa.ChunkedArray, captions: pa.Table, store: Store, seed: int) -> Pairs:
    """Join a training set with the other tower's table, through the captions that belong to photos.

    Args:
        tower: That is trained.
        ids: [N] photos' ids, or captions, in the order of the training set.
        captions: Of the training split: `text`, and `image_id`, null for a caption without a photo.
        store: The other tower's training table.
        seed: Of the draws.

    Raises:
        ValueError: No caption belongs to a photo that the store has.
    """
    captions = captions.filter(pc.is_valid(captions.column("image_id")))
    own, other = ("image_id", "text") if tower == "image" else ("text", "image_id")
    both = joined(places(captions.column(own), ids), store.find(captions.column(other)))
    if not len(both):
        raise InvalidValue(
            f"icl, pair_affinity: expected training captions of training photos, both in the store, found none of "
            f"{len(captions)} (captions in a TSV without image names belong to no photo). Leave these losses out"
        )
    counts = np.bincount(both[:, 0], minlength=len(ids))
    if lacking := int((counts == 0).sum()):
        what = "photos have no caption" if tower == "image" else "captions have no photo"
        say(f"{lacking:,} of {len(ids):,} training {what}: losses on pairs leave them out")
    return Pairs(store, both[:, 1], np.cumsum([0, *counts]), seed)
