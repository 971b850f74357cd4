"""What training samples are paired with, from a real store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clip_distill.batches.pairs import find_pairs
from clip_distill.corpus.layout import scan
from clip_distill.store.table import Store, table_folder


def test_a_photo_draws_one_of_its_captions(tiny_data: Path, tiny_views_store: Path) -> None:
    train = scan(str(tiny_data)).train
    texts = Store(table_folder(str(tiny_views_store), "text", "train"))
    photos = train.images.column("id")
    pairs = find_pairs("image", photos, train.captions, texts, seed=0)
    of = {photo: set() for photo in photos.to_pylist()}
    for caption in train.captions.to_pylist():
        if caption["image_id"] is not None:
            of[caption["image_id"]].add(caption["text"])
    rows = torch.tensor([3, 0, 23, 3])
    drawn = [pairs.draw(rows, epoch) for epoch in range(20)]
    seen: dict[int, set[str]] = {3: set(), 0: set(), 23: set()}
    every, ids = texts.all_embeddings(), texts.ids.to_pylist()
    for batch in drawn:
        for row, embedding in zip(rows.tolist(), batch.numpy(), strict=True):
            (place,) = np.flatnonzero((every == embedding).all(1))
            seen[row].add(ids[place])
    assert seen == {row: of[photos[row].as_py()] for row in seen}  # both captions come up, and no others
    assert torch.equal(pairs.draw(rows, 7), drawn[7])


def test_a_caption_draws_its_photo_and_one_without_a_photo_nothing(tiny_data: Path, tiny_views_store: Path) -> None:
    train = scan(str(tiny_data)).train
    images = Store(table_folder(str(tiny_views_store), "image", "train"))
    captions = train.captions.column("text").unique()
    pairs = find_pairs("text", captions, train.captions, images, seed=0)
    photo_of = {each["text"]: each["image_id"] for each in train.captions.to_pylist()}
    drawn = pairs.draw(torch.arange(len(captions)), 0)
    without = 0
    for text, embedding in zip(captions.to_pylist(), drawn, strict=True):
        if photo_of[text] is None:
            without += 1
            assert not embedding.any()
        else:
            expected = images.embeddings(images.find([photo_of[text]]))[0]
            assert torch.equal(embedding, torch.from_numpy(expected))
    assert without == 24  # the lines of Conceptual Captions


def test_captions_that_belong_to_no_photo_are_an_error(tiny_data: Path, tiny_views_store: Path) -> None:
    train = scan(str(tiny_data)).train
    images = Store(table_folder(str(tiny_views_store), "image", "train"))
    alone = train.captions.filter(pa.array([each is None for each in train.captions.column("image_id").to_pylist()]))
    with pytest.raises(ValueError, match="expected training captions of training photos, both in the store, found non"):
        find_pairs("text", alone.column("text"), alone, images, seed=0)
