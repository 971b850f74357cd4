"""Recalls per photo and their intervals, beside naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_distill.evaluation.recall import RECALLS, retrieval_metrics, retrieval_ranks
from clip_distill.reporting.statistics import Hits, changed_most, histogram, hits_of, intervals, recalls


def embeddings(seed: int, photos: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(photos, 8, generator=generator)
    owner = torch.arange(photos - 2).repeat(2)  # two photos have no caption
    texts = images[owner] + 1.5 * torch.randn(len(owner), 8, generator=generator)
    return images, texts, owner


def hits(seed: int) -> Hits:
    images, texts, owner = embeddings(seed)
    return hits_of(*retrieval_ranks(images, texts, owner), owner, len(images))


def test_every_photo_once_gives_the_recalls_themselves() -> None:
    images, texts, owner = embeddings(0)
    found = recalls(hits(0), np.ones((1, len(images))))[0]
    expected = retrieval_metrics(images, texts, owner)
    assert found == pytest.approx([*(expected[name] for name in RECALLS), expected["mean_recall"]])


def test_a_photo_drawn_twice_counts_twice() -> None:
    images, texts, owner = embeddings(1)
    text_to_image, _ = retrieval_ranks(images, texts, owner)
    draw = np.zeros(len(images))
    draw[[3, 3, 7]] = 2.0, 2.0, 1.0
    rows = [row for row, photo in enumerate(owner.tolist()) for _ in range(int(draw[photo]))]
    naive = 100 * np.mean([int(text_to_image[row]) <= 5 for row in rows])
    assert recalls(hits(1), draw[None])[0][RECALLS.index("t2i_r5")] == pytest.approx(naive)


def test_intervals_hold_the_value_and_are_nothing_for_equal_models() -> None:
    own = hits(2)
    same = intervals(own, own)
    assert same["mean_recall"]["difference"] == [0.0, 0.0, 0.0]
    report = intervals(own, hits(3))
    for measure in report.values():
        for value, low, high in measure.values():
            assert low <= value <= high and low < high
    mean = report["mean_recall"]
    assert mean["difference"][0] == pytest.approx(mean["student"][0] - mean["teacher"][0])
    assert intervals(own, hits(3)) == report, "drawn by seed"


def test_queries_that_changed_most_by_the_ratio_of_their_ranks() -> None:
    lost, gained = changed_most(torch.tensor([1, 100, 5, 8]), torch.tensor([10, 200, 5, 1]), 3)
    assert lost == [0, 1] and gained == [3]


def test_a_histogram_holds_all() -> None:
    found = histogram(torch.tensor([0.2, 0.9, 0.91, 1.0]))
    assert sum(found["per_cent"]) == pytest.approx(100) and found["edges"][0] <= 0.2001 and found["edges"][-1] == 1.0
