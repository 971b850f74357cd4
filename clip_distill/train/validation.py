"""Validation of one tower against the teacher's other tower, or of two students, from the store: no teacher in memory.

Shapes: N own rows (photos, or unique captions), M rows of the other tower, C (photo, caption) pairs, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.corpus.layout import Split
from clip_distill.evaluation.holdout import MOST, agreement
from clip_distill.evaluation.recall import retrieval_metrics
from clip_distill.store.manifest import StoreError, require_same, teacher_fingerprint
from clip_distill.store.table import Store
from clip_distill.system.talk import say
from clip_distill.towers.spec import Tower


@dataclass(frozen=True)
class Validation:
    """What a student is measured against.

    Args:
        tower: Which tower the student replaces.
        own: [N, D] the teacher's embedding of each row that the student embeds; [N, 0] where it has none, of captions
            in a language that it does not know.
        other: [M, D] the teacher's other tower.
        caption_row: [C] row of each pair's caption among the captions.
        image_row: [C] row of each pair's photo among the photos.
    """

    tower: Tower
    own: Tensor
    other: Tensor
    caption_row: Tensor
    image_row: Tensor
    measure = "mean_recall"

    def metrics(self, student: Tensor) -> dict[str, float]:
        """Retrieval with the teacher's other tower, over all captions, and the mean cosine to the teacher's own if any.

        Args:
            student: [N, D], in the order of `own`; not normalised.
        """
        student = student.float()
        images, captions = (student, self.other) if self.tower == "image" else (self.other, student)
        result = dict(retrieval_metrics(images, captions[self.caption_row], self.image_row))
        if self.own.shape[1]:
            sample = slice(None, None, -(-len(student) // MOST))
            result |= agreement(student[sample], self.own[sample])
            result["cosine"] = float(F.cosine_similarity(student, self.own, dim=-1).mean())
        return result

    def metrics_of_both(self, images: Tensor, captions: Tensor) -> dict[str, float]:
        """Retrieval of two students with each other, and each one's mean cosine to the teacher; of tower image's.

        Args:
            images: [N, D] the image student's, in the order of `own`; not normalised.
            captions: [M, D] the text student's, in the order of `other`.
        """
        captions = captions.float()
        metrics = replace(self, other=captions).metrics(images)
        metrics["image_cosine"] = metrics.pop("cosine")
        metrics["text_cosine"] = float(F.cosine_similarity(captions, self.other, dim=-1).mean())
        return metrics


def load_validation(
    tower: Tower, images: Store, texts: Store | None, split: Split, foreign: bool = False
) -> tuple[Validation, pa.Table]:
    """Join a split's photos and captions with what the store has of them.

    Args:
        tower: Which tower the student replaces.
        images: The teacher's embeddings of the photos.
        texts: The teacher's embeddings of the captions; None for a foreign student alone.
        split: The photos and captions.
        foreign: A text student's captions may be in a language that the teacher does not know. Where the store lacks
            any of them, all count, and nothing is compared with the teacher's text tower.

    Returns:
        The validation, and the table of its own rows: photos (id, path, offset, size, and the digest of the one that
        the teacher saw, null where the store does not know) or unique captions (id).

    Raises:
        StoreError: The two tables are of different teachers, or no caption has both its photo and itself in the store.
    """
    photos, rows = _stored_photos(images, texts, split)
    captions = split.require_captions()
    if texts is None or (tower == "text" and foreign and (texts.find(captions.column("text")) < 0).any()):
        return _without_teacher(captions, photos, _rows(images, rows))
    validation, photos, texts_used = _joined(images, texts, captions, photos, rows)
    if tower == "image":
        return validation, photos
    return replace(validation, tower="text", own=validation.other, other=validation.own), texts_used


def load_both(images: Store, texts: Store, split: Split) -> tuple[Validation, pa.Table, pa.Table]:
    """`load_validation` for two students: as the image student's, with the table of photos and that of captions."""
    photos, rows = _stored_photos(images, texts, split)
    return _joined(images, texts, split.require_captions(), photos, rows)


def _stored_photos(images: Store, texts: Store | None, split: Split) -> tuple[pa.Table, NDArray[np.int64]]:
    """The split's photos that the store has, and their rows there; the two tables must be of one teacher."""
    if texts is not None:
        require_same(
            f"{texts.folder}, beside {images.folder.name},",
            teacher_fingerprint(images.manifest.teacher),
            teacher_fingerprint(texts.manifest.teacher),
            "Run `clip-distill embed` for both towers with one teacher, into one --store.",
        )
    photos = split.require_images()
    rows = images.find(photos.column("id"))
    say_missing(images, int((rows < 0).sum()))
    return photos.filter(pa.array(rows >= 0)), rows[rows >= 0]


def _joined(
    images: Store, texts: Store, captions: pa.Table, photos: pa.Table, rows: NDArray[np.int64]
) -> tuple[Validation, pa.Table, pa.Table]:
    """The image tower's validation by photos at these rows of the store, and the tables of photos and of captions."""
    text_row = texts.find(captions.column("text"))
    say_missing(texts, len(captions.filter(pa.array(text_row < 0)).column("text").unique()))
    photo_row = np.asarray(_index(captions.column("image_id"), photos.column("id")))
    both = (text_row >= 0) & (photo_row >= 0)
    if not both.any():
        raise StoreError(
            f"{texts.folder}: expected captions of the validation photos, found none of the {len(captions)} in the "
            f"store with their photo ({len(photos)} photos). Run `clip-distill embed --split val` on this data."
        )
    used, caption_row = np.unique(text_row[both], return_inverse=True)
    table = photos.append_column("digest", images.photos(rows).column("digest"))
    pairs = torch.from_numpy(caption_row), torch.from_numpy(photo_row[both])
    validation = Validation("image", _rows(images, rows), _rows(texts, used), *pairs)
    return validation, table, pa.table({"id": texts.ids.take(pa.array(used))})


def _without_teacher(captions: pa.Table, photos: pa.Table, embeddings: Tensor) -> tuple[Validation, pa.Table]:
    """All captions of the given photos, whose embeddings are [M, D]."""
    image_row = np.asarray(_index(captions.column("image_id"), photos.column("id")))
    texts = captions.column("text").filter(pa.array(image_row >= 0))
    if not len(texts):
        raise StoreError(
            f"expected captions of the validation photos, found none of {len(captions)} that belongs to one of the "
            f"{len(photos)} photos in the store. Give --sources.val_captions a file that names these photos"
        )
    unique = texts.unique()
    say(
        f"validation: {len(unique):,} captions, not all of which the store has: recall is measured with the stored "
        "photos, and no cosine to the teacher's own embeddings"
    )
    caption_row = np.asarray(pc.index_in(texts, value_set=unique).combine_chunks()).astype(np.int64)
    pairs = torch.from_numpy(caption_row), torch.from_numpy(image_row[image_row >= 0])
    return Validation("text", torch.empty(len(unique), 0), embeddings, *pairs), pa.table({"id": unique})


def say_missing(store: Store, missing: int) -> None:
    """Say how many of the data's rows the store lacks, beyond those that could not be read when it was made."""
    missing -= sum(store.manifest.skipped.values())
    if missing > 0:
        say(
            f"{store.folder}: {missing} of the data's {store.manifest.tower}s are not in the store; "
            "`clip-distill embed` adds them"
        )


def _index(needles: pa.ChunkedArray, haystack: pa.ChunkedArray) -> pa.Array:
    return pc.index_in(needles, value_set=haystack.combine_chunks()).fill_null(-1).combine_chunks()


def _rows(store: Store, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(store.embeddings(rows)).float()
