"""What validation shares with training: photos that are nearly the same to the teacher, and captions word for word.

Shapes: N validation photos, M training photos, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clip_distill.corpus.layout import Corpus
from clip_distill.reporting.statistics import Hits
from clip_distill.store.ensemble import open_table
from clip_distill.store.table import StoreError

NEAR = 0.97  # cosine of the teacher's embeddings
CHUNK = 1 << 22  # cosines held at a time
SHOWN = 8


def nearest(validation: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """For each validation photo the greatest cosine with a training photo, and that one's row; [N] each."""
    ours, theirs = F.normalize(validation.float(), dim=1), F.normalize(training.float(), dim=1)
    step = max(1, CHUNK // len(theirs))
    found = [(ours[start : start + step] @ theirs.T).max(1) for start in range(0, len(ours), step)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def shared_texts(validation: Iterable[str], training: Iterable[str]) -> int:
    """How many different validation captions are training captions, too, but for spaces and capitals."""
    ours, theirs = ({" ".join(text.casefold().split()) for text in texts} for texts in (validation, training))
    return len(ours & theirs)


def leaks(images: Tensor, captions: list[str], corpus: Corpus, store: str) -> dict[str, Any] | None:
    """Near-duplicates and shared captions; None where the store has no training photos, or the data has none of them.

    Args:
        images: [N, D] the teacher's embeddings of the validation photos.
        captions: Of validation.
        corpus: Its training photos are looked for in the store.
        store: The store.

    Returns:
        `photos`: rows of the validation photos that have a near-duplicate; `pairs`: the nearest of them, each with the
        place of the training photo; `captions`: how many stand in both.
    """
    try:
        table = open_table(store, "image", "train")
    except StoreError:
        return None
    training = corpus.train.images
    rows = table.find(training.column("id")) if training.num_rows else np.empty(0, np.int64)
    there = np.flatnonzero(rows >= 0)
    if not len(there):
        return None
    cosines, others = nearest(images, torch.from_numpy(table.embeddings(rows[there])))
    near = (cosines >= NEAR).nonzero().flatten()
    order = near[cosines[near].argsort(descending=True)][:SHOWN].tolist()
    places = training.take(there[others[order].numpy()]).to_pylist() if order else []
    pairs = [
        {"photo": row, "cosine": float(cosines[row]), "other": {key: place[key] for key in ("path", "offset", "size")}}
        for row, place in zip(order, places, strict=True)
    ]
    both = shared_texts(captions, corpus.train.captions.column("text").to_pylist())
    return {"near": NEAR, "photos": near.tolist(), "pairs": pairs, "captions": both}


def without(hits: Hits, photos: Sequence[int]) -> Hits:
    """As if these photos, and their captions' questions, were not asked; they stay among what can be found."""
    kept = np.ones(len(hits.found), bool)
    kept[list(photos)] = False
    return Hits(hits.found[kept], hits.asked[kept])
