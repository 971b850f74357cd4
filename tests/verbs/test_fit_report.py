"""What `clip-distill fit` says of a run: what it cost, and which learning rate to take."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import psutil
import pytest

from clip_distill.cli import main as cli
from clip_distill.train.learning_rate import steepest


def arguments(data: Path, store: Path, out: Path, *options: str) -> list[str]:
    base = ["fit", "--preset", "none", "--tower", "text", "--data", str(data), "--store", str(store), "--out", str(out)]
    base += ["--student.options", "{transformer_width: 16, transformer_layers: 2, transformer_heads: 2}"]
    base += ["--loader.workers", "0", "--loader.batch_size", "8", "--trainer.accelerator", "cpu"]
    return [*base, "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", *options]


def logged(out: Path, column: str) -> list[float]:
    with open(out / "logs/metrics.csv", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def test_what_a_run_cost_is_said_and_logged(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(arguments(tiny_data, tiny_views_store, tmp_path))
    said = re.search(r"trained at ([\d,]+) samples/s .* peak memory ([\d,]+) MB, ([\d,]+) MB", capsys.readouterr().out)
    assert said
    rate, peak, training = (int(number.replace(",", "")) for number in said.groups())
    assert logged(tmp_path, "train/samples_per_second")[-1] == pytest.approx(rate, abs=1)
    assert 0 <= training < peak < psutil.virtual_memory().total / 1e6
    assert logged(tmp_path, "train/peak_memory_mb")[-1] == pytest.approx(peak, rel=0.2)


def test_the_search_for_a_rate_says_one_and_leaves_nothing(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--find_lr", "--trainer.max_epochs", "20", "--optimizer.layer_decay", "0.9"]
    cli.main(arguments(tiny_data, tiny_views_store, tmp_path / "run", *options))
    said = re.search(r"--optimizer.lr (\S+)", capsys.readouterr().out)
    assert said and 1e-5 < float(said[1]) < 0.1
    assert not (tmp_path / "run").exists()


def test_the_rate_is_read_off_where_the_loss_falls_most_not_from_one_noisy_step() -> None:
    rates = [10 ** (-5 + step / 25) for step in range(100)]
    losses = [10 - 4 / (1 + math.exp(-(step - 55) / 4)) for step in range(100)]  # steepest at step 55
    losses[3], losses[20] = 20, 10.4
    found = steepest(rates, losses)
    assert found is not None and found == pytest.approx(rates[55], rel=0.2)
    assert steepest(rates, [1.0 + step for step in range(100)]) is None
    assert steepest(rates[:15], losses[:15]) is None
