"""What validation shares with training, found by hand-made embeddings and texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_distill.reporting.leaks import nearest, shared_texts, without
from clip_distill.reporting.statistics import Hits


def test_the_nearest_training_photo_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_distill.reporting.leaks.CHUNK", 3)  # one row a time
    validation = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    training = torch.tensor([[0.0, 5.0], [1.0, 0.0], [1.0, 1.0]])
    cosines, rows = nearest(validation, training)
    assert rows.tolist() == [1, 0] and cosines.tolist() == pytest.approx([1.0, 1.0])


def test_captions_are_compared_without_spaces_and_capitals() -> None:
    assert shared_texts(["A  dog ", "a cat", "a dog"], ["a dog", "the cat"]) == 1


def test_photos_that_leaked_are_not_asked() -> None:
    hits = Hits(np.eye(3), np.ones((3, 3)))
    rest = without(hits, [1])
    assert rest.found.tolist() == [[1, 0, 0], [0, 0, 1]] and len(rest.asked) == 2
