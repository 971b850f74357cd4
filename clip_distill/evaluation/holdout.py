"""What a student is measured by where there are no validation photos with captions: rows kept from its training.

Nothing but the teacher's own embeddings of these rows is needed, so it serves either tower and any language.
Shapes: N rows, D embedding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.corpus.layout import Corpus
from clip_distill.evaluation.recall import match_metrics, mean_cosine, neighbour_overlap
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say
from clip_distill.towers.spec import Tower

MOST = 2000
FEWEST = 10  # where a share is less: a match among two rows says nothing


@dataclass(frozen=True)
class HeldOut:
    """What a student is measured against.

    Args:
        own: [N, D] the teacher's embedding of each row that the student embeds.
        ids: Of the rows: photos' ids, or captions; empty where nobody asks.
    """

    own: Tensor
    ids: tuple[str, ...] = ()
    measure = "agreement"

    def metrics(self, student: Tensor) -> dict[str, float]:
        """`match_r1`, `match_r5`, `match_r10`, `mean_match`, `neighbours` and `agreement` in per cent, and `cosine`.

        Args:
            student: [N, D], in the order of `own`; not normalised.
        """
        return agreement(student.float(), self.own) | {"cosine": mean_cosine(student.float(), self.own)}


def agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How near a student is to its teacher on the same rows, without captions or photos to compare with.

    Among few rows every student soon finds its own, and among many hardly any has the same neighbours: `agreement`, by
    which epochs are compared, is the mean of both.
    """
    found = match_metrics(student, teacher)
    found["neighbours"] = 100 * neighbour_overlap(student, teacher)
    found["agreement"] = (found["mean_match"] + found["neighbours"]) / 2
    return found


def hold_out(corpus: Corpus, tower: Tower, store: Store, share: float) -> tuple[Corpus, HeldOut, pa.Table]:
    """Keep a share of the training rows to measure by; which, is decided by each row's content alone.

    So a row stays where it is when data is added (above `MOST`, new rows may send old ones back to training, never the
    other way), and copies of a photo, or of a caption but for its spaces and capitals, are on one side.

    Args:
        corpus: What was found.
        tower: That is trained.
        store: The teacher's training table of this tower.
        share: Of the rows, up to `MOST`, at least `FEWEST` where there are enough.

    Returns:
        The corpus without them, the measure, and the table of its rows: photos (id, path, offset, size, digest) or
        captions (id).

    Raises:
        StoreError: The store has none of the rows.
        InvalidValue: There are too few, or the share is none.
    """
    if not 0 < share < 1:
        raise InvalidValue(f"holdout: expected a share above 0 and below 1, found {share}")
    if tower == "image":
        table, column = corpus.train.require_images(), "id"
    else:
        table = corpus.train.require_captions()
        column = "original" if "original" in table.column_names else "text"
    rows = store.find(table.column(column))
    places = np.flatnonzero(rows >= 0)
    if not len(places):
        raise StoreError(
            f"{store.folder}: expected the data's {tower}s, found none of {len(table)}. Is --data the folder that the "
            "store was made from?"
        )
    names = table.column(column).take(pa.array(places)).to_pylist()
    digests = store.photos(rows[places]).column("digest") if tower == "image" else pa.nulls(len(places))
    keys = places_of([key_of(*row) for row in zip(names, digests.to_pylist(), strict=True)])
    chosen = choose(keys, share)
    kept = np.ones(len(table), bool)
    kept[places[chosen]] = False
    firsts = np.flatnonzero(chosen)[np.unique(keys[chosen], return_index=True)[1]]  # of each, not its copies
    held = table.take(pa.array(places[firsts]))
    own = torch.from_numpy(store.embeddings(rows[places[firsts]])).float()
    measure = HeldOut(own, tuple(held.column(column).to_pylist()))
    say(f"validation: {len(held):,} of the training {tower}s are held out (--holdout {share:g}); no captions needed")
    rest = table.filter(pa.array(kept))
    if tower == "image":
        held = held.append_column("digest", digests.take(pa.array(firsts)))
        return replace(corpus, train=replace(corpus.train, images=rest)), measure, held
    return replace(corpus, train=replace(corpus.train, captions=rest)), measure, pa.table({"id": held.column("text")})


def with_texts(corpus: Corpus, texts: pa.Array) -> Corpus:
    """The training captions, then these, which belong to no photo."""
    captions = corpus.train.captions
    more = pa.table({"text": texts, "image_id": pa.nulls(len(texts), captions.schema.field("image_id").type)})
    return replace(corpus, train=replace(corpus.train, captions=pa.concat_tables([captions, more])))


def key_of(name: str, digest: int | None) -> str:
    """What decides on which side a row is: the photo's content where it is known, or the caption's words."""
    return " ".join(name.casefold().split()) if digest is None else f"{digest:016x}"


def places_of(keys: list[str]) -> NDArray[np.float64]:
    """[N] numbers from 0 to 1, the same for the same key."""
    hashes = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") for key in keys]
    return np.array(hashes, np.uint64) / 2.0**64


def choose(places: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """[N] which rows are held out: those with the smallest numbers.

    Raises:
        InvalidValue: Fewer than two rows would be held out, or trained on.
    """
    different = np.unique(places)
    return places <= different[held(len(different), int((different < share).sum())) - 1]


def held(different: int, wanted: int) -> int:
    """How many of so many different rows are held out, where a share of them would be `wanted`.

    Raises:
        InvalidValue: Fewer than two rows would be held out, or trained on.
    """
    count = min(MOST, max(min(FEWEST, different // 2), wanted))
    if count < 2:
        raise InvalidValue(f"expected at least 4 different photos or captions to train on, found {different}")
    return count
