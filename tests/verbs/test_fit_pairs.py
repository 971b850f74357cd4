"""`fit` with losses on pairs: a photo with a caption, a caption with its photo."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from clip_distill.cli import main as cli

STUDENTS = {
    "image": "{input_resolution: 32, patch_size: 16, width: 16, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}


def fit(tower: str, data: Path, store: Path, out: Path, *more: str) -> None:
    options = ["--student.options", STUDENTS[tower], "--loss.names", "[mse, icl, pair_affinity]"]
    options += ["--loader.batch_size", "8", "--loader.workers", "0", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu", *more]
    options += ["--preset", "none"]
    cli.main(["fit", "--tower", tower, "--data", str(data), "--store", str(store), "--out", str(out), *options])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_losses_on_pairs_train_and_go_on_as_if_never_stopped(
    tower: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tower, tiny_data, tiny_views_store, tmp_path / "whole", "--trainer.max_epochs", "2")
    said = capsys.readouterr().out
    assert ("24 of 72 training captions have no photo" in said) == (tower == "text")
    with (tmp_path / "whole/logs/metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train/icl"]) for row in csv.DictReader(file) if row["train/icl"]]
    assert losses[-1] < losses[0]
    half = ["--optimizer.schedule", "constant", "--optimizer.warmup", "0"]
    fit(tower, tiny_data, tiny_views_store, tmp_path / "two", "--trainer.max_epochs", "2", *half)
    fit(tower, tiny_data, tiny_views_store, tmp_path / "one", "--trainer.max_epochs", "1", *half)
    fit(tower, tiny_data, tiny_views_store, tmp_path / "one", "--trainer.max_epochs", "2", *half, "--resume", "true")
    ends = [
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("one", "two")
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_mixed_photos_have_no_captions(tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a mix of two photos has no caption"):
        fit("image", tiny_data, tiny_views_store, tmp_path / "run", "--mixup", "0.2")
