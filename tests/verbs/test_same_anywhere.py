"""No result depends on where things lie, the order a disk lists them in, the time zone or the number of cores."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.index import Index

TINY = "{width: 32, layers: 1, heads: 2, patch_size: 16}"


@contextmanager
def one_core_in_auckland() -> Iterator[None]:
    """Half a day from most other zones; where the system lets a process choose its cores."""
    may_run_on = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Pacific/Auckland")
        time.tzset()
        if may_run_on:
            os.sched_setaffinity(0, {min(may_run_on)})
        try:
            yield
        finally:
            if may_run_on:
                os.sched_setaffinity(0, may_run_on)
    time.tzset()


def make(root: Path, teacher: str) -> None:
    """A store, a student measured by rows held out, and an index, of the data below."""
    data, store = ["--data", str(root / "data")], ["--store", str(root / "store")]
    drawn = ["--views", "3", "--augment", "crop_flip", "--batch_size", "7", "--device", "cpu"]
    cli.main(["embed", *data, *store, "--teacher", teacher, *drawn])
    options = ["--tower", "image", "--preset", "none", "--student.options", TINY, "--loader.batch_size", "5"]
    options += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
    cli.main(["fit", *data, *store, *options, "--out", str(root / "run")])
    model = cd.load(root / "run", device="cpu")
    index = Index(root / "index", {"dim": model.embed_dim})
    Engine(model, index, [str(root / "data/image")]).bring_up_to_date()


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_two_folders_give_the_same_store_student_and_index(tiny_data: Path, tiny_teacher: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "Ein anderer Ördner (2)/weiter unten"
    for root, backwards in ((here, False), (there, True)):
        (root / "data/image").mkdir(parents=True)
        for photo in sorted((tiny_data / "image").iterdir(), reverse=backwards):
            shutil.copy(photo, root / "data/image")
        captions = root / "data/COCO/annotations/captions_train2017.json"
        captions.parent.mkdir(parents=True)
        shutil.copy(tiny_data / "COCO/annotations/captions_train2017.json", captions)
    make(here, tiny_teacher)
    with one_core_in_auckland():
        make(there, tiny_teacher)
    assert files_of(here / "store") == files_of(there / "store")
    one, two = (json.loads((root / "run/held_out.json").read_text(encoding="utf-8")) for root in (here, there))
    assert one == two and one["ids"]
    one, two = (
        torch.load(root / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"] for root in (here, there)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    first, second = (Index(root / "index", {"dim": 32}).contents() for root in (here, there))
    names = [
        [str(Path(path).relative_to(root)) for path in found.paths] for root, found in ((here, first), (there, second))
    ]
    assert names[0] == names[1]
    assert np.array_equal(first.matrix, second.matrix)
