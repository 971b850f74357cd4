"""Captions in memory: the batches are those of the ordinary loader, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clip_distill.batches import resident as in_memory
from clip_distill.batches.datasets import Captions
from clip_distill.batches.loader import DistillData, LoaderOptions
from clip_distill.batches.resident import ResidentCaptions, bytes_of, place_for
from clip_distill.recipe import Loader, Recipe, Student
from clip_distill.train.assemble import assemble

OPTIONS: dict[str, Any] = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
CPU = torch.device("cpu")


@pytest.fixture
def data(tiny_data: Path, tiny_views_store: Path) -> DistillData:
    loader = Loader(batch_size=5, workers=0)
    places = str(tiny_data), str(tiny_views_store), "unused"
    return assemble(Recipe("text", *places, Student(options=dict(OPTIONS)), loader=loader, seed=4))[1]


@pytest.mark.parametrize("width", [None, 77])
@pytest.mark.parametrize("part", ["train", "val"])
def test_batches_are_those_of_the_captions_themselves(data: DistillData, part: str, width: int | None) -> None:
    captions = getattr(data, part)
    assert isinstance(captions, Captions)
    captions.width = width
    resident = ResidentCaptions(captions, CPU)
    assert len(resident) == len(captions)
    for items in data.order():
        items[:, 0] %= len(captions)
        mine, theirs = resident[items], captions[items]
        assert torch.equal(mine.inputs, theirs.inputs) and mine.inputs.dtype == theirs.inputs.dtype
        assert torch.equal(mine.rows, theirs.rows)
        assert (mine.target is None) == (theirs.target is None) == (part == "val")
        if mine.target is not None and theirs.target is not None:
            assert torch.equal(mine.target, theirs.target) and mine.target.dtype == torch.float32


def test_what_a_copy_takes_is_known_beforehand(data: DistillData) -> None:
    assert isinstance(data.train, Captions)
    resident = ResidentCaptions(data.train, CPU)
    tensors = [value for value in vars(resident).values() if isinstance(value, torch.Tensor)]
    assert bytes_of(data.train) == sum(each.nbytes for each in tensors)
    assert place_for(data.train, CPU, "auto") is None, "a CPU has them already"


def test_the_copy_lies_where_there_is_room(data: DistillData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(data.train, Captions)
    gpu, size = torch.device("cuda", 0), bytes_of(data.train)
    assert [place_for(data.train, gpu, wanted) for wanted in (True, False)] == [gpu, None]
    assert place_for(data.train, gpu, "memory") == CPU
    for on_gpu, in_main, expected in ((4, 0, gpu), (3, 8, CPU), (3, 4, None)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=on_gpu: (free * size, 0))
        monkeypatch.setattr(in_memory, "available_bytes", lambda free=in_main: free * size)
        assert place_for(data.train, gpu, "auto", processes=2) == expected


@pytest.mark.parametrize(("wanted", "made"), [(True, True), ("memory", True), (False, False), ("auto", False)])
def test_a_loader_makes_the_copy_once_where_it_is_wanted(data: DistillData, wanted: Any, made: bool) -> None:
    data.options = LoaderOptions(5, 5, 0, wanted)
    loaders = [data.train_dataloader(), data.train_dataloader()]
    assert [isinstance(loader.dataset, ResidentCaptions) for loader in loaders] == [made, made]
    assert loaders[0].dataset is loaders[1].dataset


@pytest.mark.parametrize("where", [True, "memory"])
def test_what_cannot_lie_there_is_told(where: Any) -> None:
    for changed in ({"tower": "image"}, {"target": "online"}):
        given = {"tower": "text", "data": "data", "store": "store", "out": "out"} | changed
        with pytest.raises(ValueError, match="loader.resident: expected --tower text and --target stored, found"):
            Recipe(**given, loader=Loader(resident=where))
