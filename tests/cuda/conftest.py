"""What the tests on a GPU share. CLIP_DISTILL_CUDA_TESTS=cpu runs their bodies on a CPU, to see that they are right."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip_distill.cli import main as cli

STUDENTS = {
    "image": "{input_resolution: 32, patch_size: 16, width: 32, layers: 2, heads: 2}",
    "text": "{transformer_width: 32, transformer_layers: 2, transformer_heads: 2}",
}
Fit = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def sums_that_can_be_repeated() -> None:
    """What cuBLAS asks for before it adds up in one order; it must be there when CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("CLIP_DISTILL_CUDA_TESTS") == "cpu":
        return "cpu"
    pytest.skip("no CUDA device is here; CLIP_DISTILL_CUDA_TESTS=cpu runs the same on the CPU")


@pytest.fixture(scope="session")
def fit(device: str, tiny_data: Path, tiny_views_store: Path) -> Fit:
    """`clip-distill fit` on the device: tower and folder, options → the folder."""

    def run(tower: str, out: Path, *options: str, on: str = device) -> Path:
        base = ["fit", "--tower", tower, "--data", str(tiny_data), "--store", str(tiny_views_store), "--out", str(out)]
        base += ["--preset", "none"]
        if tower in STUDENTS and "--student.name" not in options:
            base += ["--student.options", STUDENTS[tower]]
        base += ["--loader.batch_size", "8", "--seed", "4", "--trainer.log_every_n_steps", "1"]
        base += ["--trainer.accelerator", "gpu" if on == "cuda" else "cpu", "--trainer.devices", "1"]
        cli.main([*base, "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false", *options])
        return out

    return run


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, on the CPU."""
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)[
        "state_dict"
    ]
    return state


def logged(out: Path, column: str) -> list[float]:
    """A column of the run's CSV."""
    with open(out / "logs/metrics.csv", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def precision(device: str, name: str) -> str:
    """A CPU has no 16-mixed: there bfloat16 stands in for it."""
    return "bf16-mixed" if device == "cpu" and name == "16-mixed" else name


@pytest.fixture(scope="session")
def read() -> Callable[[Path, str], list[float]]:
    return logged


@pytest.fixture(scope="session")
def state() -> Callable[[Path], dict[str, torch.Tensor]]:
    return weights


@pytest.fixture(scope="session")
def at(device: str) -> Callable[[str], str]:
    """A precision that the device has."""
    return lambda name: precision(device, name)
