"""The other verbs, and loaded models, on a GPU: against the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.store.table import Store
from clip_distill.system.files import read_json

pytestmark = pytest.mark.cuda
TABLES = ("image-train", "image-val", "text-train", "text-val")
LEAST = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999}


def embed(data: Path, teacher: str, store: Path, device: str, precision: str) -> dict[str, Any]:
    """Table → its embeddings [N, V, D]."""
    options = ["--views", "2", "--augment", "crop_flip", "--workers", "1", "--dtype", "float32"]
    places = ["--data", str(data), "--teacher", teacher, "--store", str(store)]
    cli.main(["embed", *places, *options, "--device", device, "--precision", precision])
    found = {}
    for name in TABLES:
        table = Store(store / name)
        rows = np.arange(len(table))
        found[name] = np.stack([table.embeddings(rows, view) for view in range(table.manifest.views)], axis=1)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_embeddings_are_the_cpus_and_come_again(
    precision: str, device: str, tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    if device == "cpu" and precision == "fp16":
        pytest.skip("float16 is slow on a CPU")
    reference = embed(tiny_data, tiny_teacher, tmp_path / "cpu", "cpu", "fp32")
    once, again = (embed(tiny_data, tiny_teacher, tmp_path / name, device, precision) for name in ("once", "again"))
    for name in TABLES:
        unit = [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (once[name], reference[name])]
        assert (unit[0] * unit[1]).sum(axis=-1).min() >= LEAST[precision], name
        np.testing.assert_array_equal(once[name], again[name])


@pytest.fixture(scope="module")
def runs(fit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Students that were trained on the device."""
    return {tower: fit(tower, tmp_path_factory.mktemp(tower)) for tower in ("image", "text")}


def test_recall_is_the_cpus(device: str, runs: dict[str, Path], tiny_data: Path, tiny_views_store: Path) -> None:
    students = {f"{tower}_student": run for tower, run in runs.items()}
    here, there = (
        cd.evaluate(data=tiny_data, store=tiny_views_store, device=each, **students).to_dict()
        for each in (device, "cpu")
    )
    for one, other in zip(here["pairings"], there["pairings"], strict=True):
        # among 8 photos and 24 captions rounding may swap two that are equally near
        assert one["mean_recall"] == pytest.approx(other["mean_recall"], abs=3)


def test_a_benchmark_measures_the_device(device: str, runs: dict[str, Path], tiny_teacher: str, tmp_path: Path) -> None:
    options = ["--runtimes", "[eager]", "--batch_sizes", "[1, 8]", "--repeats", "3", "--rows", "8", "--device", device]
    students = ["--text_student", str(runs["text"]), "--image_student", str(runs["image"])]
    cli.main(["benchmark", "--teacher", tiny_teacher, *students, *options, "--out", str(tmp_path)])
    variants = read_json(tmp_path / "benchmark.json")["variants"]
    assert len(variants) == 4
    for each in variants:
        assert "failed" not in each
        assert each["least_cosine"] > 0.999
        assert all(case["median_seconds"] > 0 for case in each["cases"])


def test_a_loaded_model_encodes_as_on_the_cpu(device: str, runs: dict[str, Path], tiny_data: Path) -> None:
    here, there = (cd.load(image=runs["image"], text=runs["text"], device=each) for each in (device, "cpu"))
    photos = sorted((tiny_data / "image").iterdir())[:10]
    texts = ["a red circle", "一只狗", "a green bar on white"]
    for one, other in (
        (here.encode_image(photos), there.encode_image(photos)),
        (here.encode_text(texts), there.encode_text(texts)),
    ):
        assert one.dtype == np.float32
        assert (one * other).sum(axis=1).min() > 0.9999
    tensor = here.encode_text(texts, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert here.similarity(here.encode_text(texts), here.encode_image(photos)).shape == (3, 10)


@pytest.mark.parametrize("format", ["open_clip", "onnx"])
def test_a_student_that_was_trained_here_is_exported(format: str, runs: dict[str, Path], tmp_path: Path) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    out = cd.export(image_student=runs["image"], text_student=runs["text"], out=tmp_path / "out", to=format)
    texts = ["a red circle", "a blue bar"]
    expected = cd.load(runs["text"], device="cpu").encode_text(texts)
    assert (cd.load(out, device="cpu").encode_text(texts) * expected).sum(axis=1).min() > 0.9999


def test_the_learning_rate_is_searched(fit: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    fit("text", tmp_path / "run", "--find_lr", "--trainer.max_epochs", "20")
    assert "learning rate  loss (smoothed)" in capsys.readouterr().out
