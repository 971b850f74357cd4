"""Recalls with intervals: photos are drawn again and again, each with all of its captions, the same for both models.

The bootstrap of Efron (1979) over photos, since captions of one photo are not independent; percentile intervals.
Shapes: N photos, N_t captions, M measures, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.evaluation.recall import KS, RECALLS

DRAWS = 1000
MEASURES = (*RECALLS, "mean_recall")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hits:
    """Of each photo, how many of its queries found a right answer among the first K, and how many queries it has.

    Args:
        found: [N, 6], in the order of RECALLS.
        asked: [N, 6].
    """

    found: Floats
    asked: Floats


def hits_of(text_to_image: Tensor, image_to_text: Tensor, image_of_caption: Tensor, photos: int) -> Hits:
    """From ranks, as `evaluation.recall.retrieval_ranks` gives them.

    Args:
        text_to_image: [N_t], 1 being the best.
        image_to_text: One for each photo with a caption.
        image_of_caption: [N_t].
        photos: N.
    """
    owner = image_of_caption.numpy()
    captions = np.bincount(owner, minlength=photos).astype(float)
    with_caption = captions > 0
    found, asked = np.zeros((photos, 2 * len(KS))), np.zeros((photos, 2 * len(KS)))
    for place, k in enumerate(KS):
        found[:, place] = np.bincount(owner, weights=(text_to_image.numpy() <= k), minlength=photos)
        asked[:, place] = captions
        found[with_caption, len(KS) + place] = image_to_text.numpy() <= k
        asked[:, len(KS) + place] = with_caption
    return Hits(found, asked)


def recalls(hits: Hits, weights: Floats) -> Floats:
    """[R, M] in per cent, of draws [R, N] that say how often each photo is there."""
    each = 100 * (weights @ hits.found) / (weights @ hits.asked)
    return np.concatenate([each, each.mean(1, keepdims=True)], axis=1)


def intervals(teacher: Hits, student: Hits, seed: int = 0, draws: int = DRAWS) -> dict[str, dict[str, list[float]]]:
    """Each measure of teacher and student, and the student's less the teacher's: value, and its 95% interval.

    Args:
        teacher: On the same photos.
        student: On the same photos.
        seed: Of the draws.
        draws: R.

    Returns:
        Measure → `teacher`, `student`, `difference` → [value, low, high].
    """
    count = len(teacher.found)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
    once = np.ones((1, count))
    report: dict[str, dict[str, list[float]]] = {name: {} for name in MEASURES}
    drawn = {"teacher": recalls(teacher, weights), "student": recalls(student, weights)}
    whole = {"teacher": recalls(teacher, once)[0], "student": recalls(student, once)[0]}
    drawn["difference"] = drawn["student"] - drawn["teacher"]
    whole["difference"] = whole["student"] - whole["teacher"]
    for who, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5], axis=0)
        for place, name in enumerate(MEASURES):
            report[name][who] = [float(whole[who][place]), float(low[place]), float(high[place])]
    return report


def changed_most(teacher: Tensor, student: Tensor, count: int) -> tuple[list[int], list[int]]:
    """Queries that lost most and gained most, by the ratio of their ranks.

    Args:
        teacher: [N_t] ranks, 1 being the best.
        student: [N_t].
        count: At most as many of each; none whose rank did not get worse, or better.
    """
    change = (student.double().log() - teacher.double().log()).numpy()
    order = np.argsort(change, kind="stable")
    lost = [int(row) for row in order[::-1][:count] if change[row] > 0]
    gained = [int(row) for row in order[:count] if change[row] < 0]
    return lost, gained


def histogram(cosines: Tensor, bins: int = 40) -> dict[str, list[float]]:
    """Shares in per cent between evenly spaced edges, which lie around what is there."""
    values = cosines.clamp(-1, 1)
    low, high = float(torch.floor(values.min() * 20) / 20), 1.0
    counts, edges = np.histogram(values.numpy(), bins=bins, range=(low, high))
    return {"edges": edges.tolist(), "per_cent": (100 * counts / len(values)).tolist()}
