"""Which class a photo is of, by the nearest class in the embedding space (Radford et al., 2021, arXiv:2103.00020).

Shapes: N photos, C classes, T templates, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    binary_average_precision,
    multiclass_accuracy,
    multiclass_confusion_matrix,
)

CONFUSED = 10  # pairs of classes that are listed


def class_embeddings(texts: Tensor, classes: int) -> Tensor:
    """[C, D] of unit length: the mean direction of each class's texts.

    Args:
        texts: [C · T, D], class by class; normalised in here.
        classes: C.
    """
    return F.normalize(F.normalize(texts.float(), dim=1).unflatten(0, (classes, -1)).mean(1), dim=1)


def class_scores(images: Tensor, classes: Tensor) -> Tensor:
    """[N, C] cosines of photos [N, D], normalised in here, with classes [C, D] of unit length."""
    return F.normalize(images.float(), dim=1) @ classes.T


def single(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Photos of one class each: top-1, top-5 and the mean over classes of top-1, in per cent, and what is confused.

    Args:
        scores: [N, C].
        labels: int64 [N].

    Returns:
        `top1`, `top5`, `mean_per_class`, `per_class` [C] (None for a class without photos) and `confused`: up to ten
        (right class, found class, photos), most photos first.
    """
    count = scores.shape[1]

    def top(k: int) -> float:
        return 100 * float(multiclass_accuracy(scores, labels, num_classes=count, top_k=min(k, count), average="micro"))

    matrix = multiclass_confusion_matrix(scores, labels, num_classes=count)
    there = matrix.sum(1)
    each = 100 * matrix.diagonal() / there
    wrong = matrix.clone().fill_diagonal_(0).flatten()
    most = wrong.argsort(descending=True, stable=True)[:CONFUSED].tolist()
    return {
        "top1": top(1),
        "top5": top(5),
        "mean_per_class": float(each[there > 0].mean()),
        "per_class": [None if not photos else float(value) for value, photos in zip(each, there, strict=True)],
        "confused": [[place // count, place % count, int(wrong[place])] for place in most if wrong[place]],
    }


def multilabel(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Photos of any number of classes: average precision of each class, and their mean, in per cent.

    Args:
        scores: [N, C].
        labels: bool [N, C].

    Returns:
        `mean_average_precision`, over the classes that have photos, and `per_class` [C] (None for one without).
    """
    each = [
        100 * float(binary_average_precision((column + 1) / 2, right.long())) if right.any() else None
        for column, right in zip(scores.T, labels.T, strict=True)
    ]
    there = [value for value in each if value is not None]
    return {"mean_average_precision": sum(there) / len(there), "per_class": each}


def agreement_of(scores: Tensor, teacher: Tensor) -> float:
    """Share of photos, in per cent, of which both find the same class first; [N, C] each."""
    return 100 * float((scores.argmax(1) == teacher.argmax(1)).double().mean())


def measured(scores: Tensor, teacher: Tensor, labels: Tensor | None, several: bool) -> dict[str, Any]:
    """All that is said of one pairing of towers.

    Args:
        scores: [N, C] of the pairing.
        teacher: [N, C] of the teacher's own towers.
        labels: bool [N, C]; None where nobody knows.
        several: A photo may have any number of classes.
    """
    found: dict[str, Any] = {"agreement": agreement_of(scores, teacher)}
    if labels is None:
        shares = torch.bincount(scores.argmax(1), minlength=scores.shape[1])
        return found | {"photos_per_class": shares.tolist()}
    return found | (multilabel(scores, labels) if several else single(scores, labels.long().argmax(1)))
