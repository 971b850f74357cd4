"""Inputs have the shapes that towers take, and are the data's where there is some."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clip_distill.benchmarking.inputs import Inputs
from clip_distill.benchmarking.job import Case
from clip_distill.corpus.layout import Sources
from clip_distill.tokens.encode import load_tokenizer
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import load_tower


def test_texts_are_timed_at_their_context_length_and_a_typical_one(tiny_runs: dict[str, Path]) -> None:
    spec, _ = load_tower(tiny_runs["text"])
    timed = Inputs(None, 8).timed(spec, (1, 20), 16)
    assert {case: each.shape for case, each in timed.items()} == {
        Case(size, length): (size, length) for length in (77, 16) for size in (1, 20)
    }
    short = timed[Case(20, 16)]
    assert ((short == 49407).sum(1) == 1).all()  # cut captions still have their end
    whole = dataclasses.replace(spec, cfg=spec.cfg | {"no_causal_mask": True})
    assert list(Inputs(None, 8).timed(whole, (1,), 16)) == [Case(1, 77)]


def test_images_are_of_the_towers_size(tiny_runs: dict[str, Path]) -> None:
    spec, _ = load_tower(tiny_runs["image"])
    timed = Inputs(None, 4).timed(spec, (1, 6), 16)
    assert {case: each.shape for case, each in timed.items()} == {
        Case(1, None): (1, 3, 32, 32),
        Case(6, None): (6, 3, 32, 32),
    }
    assert timed[Case(6, None)].dtype == np.float32


def test_real_inputs_are_the_validation_split_in_whole_batches(tiny_data: Path, tiny_runs: dict[str, Path]) -> None:
    inputs = Inputs.of(str(tiny_data), Sources(), rows=10)
    assert inputs.kind == "real"
    image, _ = load_tower(tiny_runs["image"])
    text, _ = load_tower(tiny_runs["text"])
    assert [each.shape for each in inputs.compared(image, 4)] == [(4, 3, 32, 32)] * 2  # 8 photos in all
    assert [each.shape for each in inputs.compared(text, 4)] == [(4, 77)] * 2  # 10 captions, 2 left over
    assert [each.shape for each in inputs.compared(text, 32)] == [(10, 77)]
    captions = inputs.captions()
    assert len(set(captions)) == 10
    assert any(caption.startswith("there is a ") for caption in captions)
    tokens = load_tokenizer(TokenizerSpec(**text.tokenizer))(captions)
    assert np.array_equal(np.concatenate(inputs.compared(text, 5)), tokens.numpy())


def test_photos_that_cannot_be_read_are_left_out(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "COCO/val2017"
    folder.mkdir(parents=True)
    (folder / "broken.jpg").write_bytes(b"not a photo")
    spec, _ = load_tower(tiny_runs["image"])
    with pytest.raises(ValueError, match="none of 1 validation photos can be read"):
        Inputs.of(str(tmp_path), Sources(), rows=10).images(spec)
