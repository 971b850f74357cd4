"""Whether a student may serve an index that its teacher made: what queries find before and after, and at which score.

Pure functions of embeddings. Shapes: Q queries, N photos, D embedding, K answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.evaluation.holdout import places_of
from clip_distill.evaluation.recall import CHUNK_SCORES, KS, retrieval_ranks

DEPTHS = (1, 5, 10, 50)  # first answers that are compared
PAGE = 10  # answers that are shown first
POINTS = 200  # of a curve


def first_answers(queries: Tensor, photos: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest photos of each query, nearest first: cosines [Q, count], and rows [Q, count].

    Args:
        queries: [Q, D], of unit length.
        photos: [N, D], of unit length.
        count: At most N.
    """
    step = max(1, CHUNK_SCORES // len(photos))
    found = [(queries[start : start + step] @ photos.T).topk(count) for start in range(0, len(queries), step)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def same_answers(before: Tensor, after: Tensor) -> dict[str, float]:
    """Share in per cent of the first 1, 5, 10, 50 answers [Q, K] that are the same photos, whatever their order."""
    depths = [depth for depth in DEPTHS if depth <= before.shape[1]]
    return {f"first_{depth}": same_share(before[:, :depth], after[:, :depth]) for depth in depths}


def same_share(before: Tensor, after: Tensor) -> float:
    """Share in per cent of answers [Q, K] that are among the other's [Q, K]."""
    return 100 * float((before[:, :, None] == after[:, None, :]).any(2).double().mean())


def recalls(queries: Tensor, photos: Tensor, right: Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10 in per cent, and their mean, of queries whose right photo is known.

    Args:
        queries: [Q, D].
        photos: [N, D].
        right: int64 [Q], rows of photos.
    """
    ranks, _ = retrieval_ranks(photos, queries, right)
    found = {f"r{k}": 100 * float((ranks <= k).double().mean()) for k in KS}
    return found | {"mean": sum(found.values()) / len(KS)}


def first_scores(queries: Tensor, photos: Tensor, right: Tensor, page: int = PAGE) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query: the score of its first answer, whether its photo is on the first page of answers, and the score of
    its first answer if its photo were not there; [Q] each.

    Args:
        queries: [Q, D], of unit length.
        photos: [N, D], of unit length, at least two.
        right: int64 [Q], rows of photos.
        page: Answers of a page.
    """
    scores, rows = first_answers(queries, photos, min(max(2, page), len(photos)))
    is_right = rows == right[:, None]
    return scores[:, 0], is_right[:, :page].any(1), torch.where(is_right[:, 0], scores[:, 1], scores[:, 0])


def calibrate(present: Tensor, is_right: Tensor, absent: Tensor, precision: float) -> dict[str, Any]:
    """The score from which answers are worth showing.

    Each query is asked twice, with its photo in the index and without. Of those whose first answer scores at least t,
    `precision` is the share that have their photo on the first page of answers, and `answered` the share of the queries
    with a photo that are answered at all. The threshold is the lowest score from which on the precision is reached;
    where none reaches it, the score with the best balance of precision and photos found (F1).

    Args:
        present: [Q] scores of first answers, each query's photo being in the index.
        is_right: bool [Q], whether that photo is on the first page.
        absent: [Q] scores of first answers, each query's photo being taken out.
        precision: Wanted, from 0 to 1.

    Returns:
        `threshold`, `precision` and `answered` there, `right` (share of the queries that get their photo), `reached`,
        and `curve`: [score, precision, answered] at up to 200 scores.
    """
    scores = torch.cat([present, absent]).double().numpy()
    good = torch.cat([is_right, torch.zeros_like(is_right)]).numpy()
    there = np.arange(len(scores)) < len(present)
    order = np.argsort(-scores, kind="stable")
    shown, right = np.arange(1, len(scores) + 1), np.cumsum(good[order])
    precisions, answered = right / shown, np.cumsum(there[order]) / len(present)
    recall = right / len(present)
    last = np.append(np.diff(scores[order]) != 0, True)  # of those with the same score the last: all are shown
    fit = last & (precisions >= precision)
    if reached := bool(fit.any()):
        chosen = int(np.flatnonzero(fit)[-1])
    else:
        balance = np.where(last, 2 * precisions * recall / np.maximum(precisions + recall, 1e-12), -1)
        chosen = int(balance.argmax())
    picked = np.flatnonzero(last)[:: max(1, int(last.sum()) // POINTS)]
    return {
        "threshold": float(scores[order][chosen]),
        "precision": 100 * float(precisions[chosen]),
        "answered": 100 * float(answered[chosen]),
        "right": 100 * float(recall[chosen]),
        "reached": reached,
        "curve": np.stack([scores[order], 100 * precisions, 100 * answered], axis=1)[picked].tolist(),
    }


def half(names: list[str]) -> NDArray[np.bool_]:
    """[N] which photos a mixed index has of the student: every second by the order of their names' hashes."""
    places = places_of(names)
    return places <= np.median(places)
