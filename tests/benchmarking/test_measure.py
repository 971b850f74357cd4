"""Towers in their runtimes, for real, each in a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clip_distill.benchmarking.inputs import Inputs
from clip_distill.benchmarking.measure import Settings, Subject, count_flops, measure
from clip_distill.towers.spec import load_tower

pytestmark = pytest.mark.usefixtures("warm_processes")


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed")
def test_every_runtime_gives_the_embeddings_of_eager(tiny_runs: dict[str, Path]) -> None:
    spec, module = load_tower(tiny_runs["image"])
    settings = Settings(batch_sizes=(4,), threads=1, repeats=7)
    records = measure([Subject("student", "tiny", spec, module)], Inputs(None, 8), settings)
    assert [record["runtime"] for record in records] == ["eager", "compile", "onnx", "onnx-int8"]
    assert not any("failed" in record for record in records)
    for record in records:
        assert (record["rows"], record["inputs"], record["device"][:3].lower()) == (8, "random", "cpu")
        assert record["parameters"] == sum(each.numel() for each in module.parameters())
        assert record["cosine"] >= record["least_cosine"] > (0.95 if "int8" in record["runtime"] else 0.9999)
        assert 0 <= record["neighbour_overlap"] <= 1
        (case,) = record["cases"]
        assert (case["batch"], case["tokens"], case["runs"]) == (4, None, 10)
        assert len(case["turn_seconds"]) == 2
        assert 0 < case["median_seconds"] <= case["p90_seconds"]
        assert record["peak_bytes"] > 0
        assert record["start_seconds"] > 0
    eager, compiled, onnx, int8 = records
    assert int8["least_cosine"] < onnx["least_cosine"]
    assert len({eager["file_bytes"], onnx["file_bytes"], int8["file_bytes"]}) == 3
    assert compiled["start_seconds"] > eager["start_seconds"]


def test_a_runtime_that_fails_is_reported_and_the_others_go_on(tiny_runs: dict[str, Path]) -> None:
    spec, module = load_tower(tiny_runs["image"])

    class Untraceable(type(module)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                raise RuntimeError("not for tracing")
            return super().forward(x)

    module.__class__ = Untraceable
    settings = Settings(runtimes=("onnx", "eager"), batch_sizes=(1,), threads=1, repeats=1)
    eager, onnx = measure([Subject("student", "tiny", spec, module)], Inputs(None, 2), settings)
    assert eager["cosine"] == pytest.approx(1)
    assert onnx["failed"].startswith("InvalidValue: ONNX: torch can't export this tower")
    assert "cases" not in onnx


def test_flops_count_a_multiplication_and_its_addition_as_two() -> None:
    inputs = np.zeros((4, 3, 8, 8), np.float32)
    assert count_flops(nn.Conv2d(3, 5, 3), inputs) == 2 * 4 * 5 * 6 * 6 * 3 * 9
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval().requires_grad_(False)
    linear, attended = 4 * 16 * 16 + 2 * 16 * 32, 2 * 10 * 16  # multiplications for each of 10 tokens
    assert count_flops(attention, np.zeros((1, 10, 16), np.float32)) == 2 * 10 * (linear + attended)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(runtimes=("onnx",)), "expected eager among the runtimes"),
        (Settings(batch_sizes=(0, 32)), "batch sizes, threads and repeats of 1 or more"),
        (Settings(batch_sizes=()), "batch sizes, threads and repeats of 1 or more"),
        (Settings(tokens=1), "tokens of 2 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.require_sound()
