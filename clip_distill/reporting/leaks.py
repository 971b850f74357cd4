"""What validation shares with training: photos that are nearly the same to the teacher or to a perceptual hash, and
captions word for word.

Shapes: N validation photos, M training photos, K neighbours, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from clip_distill.corpus.layout import Corpus
from clip_distill.evaluation.retrieval import Benchmark
from clip_distill.pixels.photos import BadImage, read_image
from clip_distill.reporting.statistics import Hits
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.system.errors import MissingPackage
from clip_distill.system.talk import progress

if TYPE_CHECKING:
    from imagehash import ImageHash

NEAR = 0.97  # cosine of the teacher's embeddings
ALIKE, CANDIDATES = (
    0.85,
    2,
)  # neighbours at least this near are hashed, so many of each photo: hashing all takes minutes
BITS = 6  # of 64 that may differ between hashes of one photo, encoded or scaled anew
CHUNK = 1 << 22  # cosines held at a time
SHOWN = 8


def nearest(validation: Tensor, training: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """For each validation photo the greatest cosines with training photos, and the rows of those; [N, K] each."""
    ours, theirs = F.normalize(validation.float(), dim=1), F.normalize(training.float(), dim=1)
    step, count = max(1, CHUNK // len(theirs)), min(count, len(theirs))
    found = [(ours[start : start + step] @ theirs.T).topk(count) for start in range(0, len(ours), step)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def hashed(place: dict[str, Any]) -> ImageHash | None:
    """The perceptual hash of a photo (DCT of its brightness, 64 bits); None where it can't be read now.

    Raises:
        MissingPackage: imagehash is not installed.
    """
    try:
        from imagehash import phash
    except ImportError as error:
        raise MissingPackage(
            f"a report needs {error.name}; install it with: pip install 'clip-distill[charts]'"
        ) from error
    try:
        return phash(read_image(place["path"], place["offset"], place["size"]))
    except BadImage:
        return None


def differing_bits(ours: pa.Table, theirs: pa.Table, cosines: Tensor, rows: Tensor) -> Tensor:
    """[N, K] bits in which the hashes of validation photos and their neighbours differ, 64 where none was made.

    Args:
        ours: Table of `corpus.layout`, N validation photos.
        theirs: M training photos.
        cosines: [N, K] of the neighbours.
        rows: [N, K] of `theirs`.
    """
    bits = torch.full(rows.shape, 64)
    pairs = (cosines >= ALIKE).nonzero().tolist()
    hashes: dict[tuple[str, int], ImageHash | None] = {}

    def hash_of(table: pa.Table, side: str, row: int) -> ImageHash | None:
        if (side, row) not in hashes:
            hashes[side, row] = hashed(table.slice(row, 1).to_pylist()[0])
        return hashes[side, row]

    for row, place in progress(pairs, "comparing photos", unit=" pairs", leave=False):
        one, other = hash_of(ours, "validation", row), hash_of(theirs, "training", int(rows[row, place]))
        if one is not None and other is not None:
            bits[row, place] = one - other
    return bits


def shared_texts(validation: Iterable[str], training: Iterable[str]) -> int:
    """How many different validation captions are training captions, too, but for spaces and capitals."""
    ours, theirs = ({" ".join(text.casefold().split()) for text in texts} for texts in (validation, training))
    return len(ours & theirs)


def leaks(benchmark: Benchmark, images: Tensor, corpus: Corpus, store: str) -> dict[str, Any] | None:
    """Near-duplicates and shared captions; None where the store has no training photos, or the data has none of them.

    Args:
        benchmark: The validation photos, N, and captions.
        images: [N, D] the teacher's embeddings of those photos.
        corpus: Its training photos are looked for in the store.
        store: The store.

    Returns:
        `photos`: rows of the validation photos that have a near-duplicate; `by_cosine` and `by_hash`: how many by each;
        `pairs`: the nearest of them, each with the place of the training photo; `captions`: how many stand in both.
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
    theirs = training.take(there)
    cosines, others = nearest(images, torch.from_numpy(table.embeddings(rows[there])), CANDIDATES)
    bits = differing_bits(benchmark.images, theirs, cosines, others)
    same, hashed_same = cosines >= NEAR, bits <= BITS
    near = (same | hashed_same).any(1).nonzero().flatten()
    best = torch.where(hashed_same, 2 + cosines, cosines).argmax(1)  # of each photo, the neighbour that is shown
    order = near[cosines[near].amax(1).argsort(descending=True)][:SHOWN].tolist()
    pairs = []
    for row in order:
        place = int(best[row])
        other = theirs.slice(int(others[row, place]), 1).to_pylist()[0]
        found = {"photo": row, "cosine": float(cosines[row, place]), "bits": int(bits[row, place])}
        pairs.append(found | {"other": {key: other[key] for key in ("path", "offset", "size")}})
    return {
        "near": NEAR,
        "bits": BITS,
        "photos": near.tolist(),
        "by_cosine": int(same.any(1).sum()),
        "by_hash": int(hashed_same.any(1).sum()),
        "pairs": pairs,
        "captions": shared_texts(benchmark.captions, corpus.train.captions.column("text").to_pylist()),
    }


def without(hits: Hits, photos: Sequence[int]) -> Hits:
    """As if these photos, and their captions' questions, were not asked; they stay among what can be found."""
    kept = np.ones(len(hits.found), bool)
    kept[list(photos)] = False
    return Hits(hits.found[kept], hits.asked[kept])
