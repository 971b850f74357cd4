"""What validation shares with training, found by hand-made embeddings and texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clip_distill.corpus.layout import IMAGES_SCHEMA
from clip_distill.reporting import leaks
from clip_distill.reporting.statistics import Hits


def test_the_nearest_training_photo_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_distill.reporting.leaks.CHUNK", 3)  # one row a time
    validation = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    training = torch.tensor([[0.0, 5.0], [1.0, 0.0], [1.0, 1.0]])
    cosines, rows = leaks.nearest(validation, training)
    assert rows.tolist() == [[1], [0]] and cosines.flatten().tolist() == pytest.approx([1.0, 1.0])
    assert leaks.nearest(validation, training, 9)[1].tolist() == [[1, 2, 0], [0, 2, 1]]


def blots(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)


def placed(*paths: Path) -> pa.Table:
    names = [str(path) for path in paths]
    ends = [-1] * len(names)
    return pa.table({"id": names, "path": names, "offset": ends, "size": ends}, IMAGES_SCHEMA)


def test_hashes_know_a_photo_that_was_scaled_and_compressed(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    blots(0).save(tmp_path / "photo.png")
    blots(0).resize((80, 60)).save(tmp_path / "small.jpg", quality=40)
    blots(1).save(tmp_path / "other.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    ours, theirs = (
        placed(tmp_path / "photo.png"),
        placed(*(tmp_path / n for n in ("small.jpg", "other.png", "broken.jpg"))),
    )
    bits = leaks.differing_bits(ours, theirs, torch.tensor([[0.9, 0.9, 0.9]]), torch.tensor([[0, 1, 2]]))
    assert bits[0, 0] <= leaks.BITS < bits[0, 1] < 64 and bits[0, 2] == 64
    far = leaks.differing_bits(ours, theirs, torch.tensor([[0.2]]), torch.tensor([[0]]))
    assert far.tolist() == [[64]], "what is far by embedding is not hashed"


def test_captions_are_compared_without_spaces_and_capitals() -> None:
    assert leaks.shared_texts(["A  dog ", "a cat", "a dog"], ["a dog", "the cat"]) == 1


def test_photos_that_leaked_are_not_asked() -> None:
    hits = Hits(np.eye(3), np.ones((3, 3)))
    rest = leaks.without(hits, [1])
    assert rest.found.tolist() == [[1, 0, 0], [0, 0, 1]] and len(rest.asked) == 2
