"""Pairs of photos and captions from a real store, each with the teacher's embedding of what is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from clip_distill.batches.loader import PairData
from clip_distill.batches.photo_captions import PairBatch, PhotoCaptions, couple
from clip_distill.corpus.layout import scan
from clip_distill.recipe import Loader, Recipe
from clip_distill.store.table import Store, table_folder
from clip_distill.towers.spec import TOWERS, load_tower
from clip_distill.train.assemble import assemble_both


@pytest.fixture
def data(tiny_data: Path, tiny_views_store: Path, tiny_runs: dict[str, Path]) -> PairData:
    runs = {f"{tower}_student": str(tiny_runs[tower]) for tower in TOWERS}
    loader = Loader(batch_size=10, val_batch_size=5, workers=0)
    recipe = Recipe("both", str(tiny_data), str(tiny_views_store), "out", loader=loader, **runs)
    return assemble_both(recipe, {tower: load_tower(tiny_runs[tower]) for tower in TOWERS})[1]


def test_an_epoch_has_every_pair_once_with_the_embeddings_of_its_view_and_its_caption(
    data: PairData, tiny_data: Path, tiny_views_store: Path
) -> None:
    images, texts = (Store(table_folder(str(tiny_views_store), tower, "train")) for tower in TOWERS)
    views = torch.stack([torch.from_numpy(images.all_embeddings(view)) for view in range(3)])
    seen, views_seen = [], set()
    batches: list[PairBatch] = list(data.train_dataloader())
    for batch in batches:
        assert batch.image.inputs.dtype == torch.uint8 and batch.text.inputs.dtype == torch.int64
        columns = batch.image.rows.tolist(), batch.image.inputs, batch.image.target, batch.text.target
        for photo, pixels, image, text in zip(*columns, strict=True):
            (place,) = np.flatnonzero((texts.all_embeddings() == text.numpy()).all(1))
            view, row = torch.nonzero((views == image).all(-1))[0].tolist()
            id = images.ids[row].as_py()
            assert torch.equal(data.train.images.render(photo, range(view, view + 1))[0], pixels)  # type: ignore[union-attr]
            seen.append((id, texts.ids[place].as_py()))
            views_seen.add(view)
    captions = scan(str(tiny_data)).train.captions.to_pylist()
    assert sorted(seen) == sorted((each["image_id"], each["text"]) for each in captions if each["image_id"])
    assert len(batches) == 5 and views_seen == {0, 1, 2}


def test_validation_has_all_photos_and_all_captions(data: PairData) -> None:
    photos, captions = (torch.cat([batch.rows for batch in loader]) for loader in data.val_dataloader())
    assert photos.tolist() == list(range(8))
    assert sorted(captions.tolist()) == list(range(24))


def test_captions_without_photos_make_no_pairs(data: PairData, tiny_data: Path) -> None:
    captions = scan(str(tiny_data)).train.captions
    lonely = captions.filter(pc.is_null(captions.column("image_id")))
    pairs = data.train
    assert isinstance(pairs, PhotoCaptions)
    assert len(couple(pairs.images, pairs.captions, captions)) == len(pairs) == 48
    with pytest.raises(ValueError, match="expected training captions of training photos, .*found none of 24"):
        couple(pairs.images, pairs.captions, lonely)
