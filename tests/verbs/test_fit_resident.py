"""`clip-distill fit` with captions on the training device: the same run, however it goes on or is shared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip_distill.cli import main as cli

TINY = "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}"


def fit(data: Path, store: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    cli.main(arguments(data, store, out, *options))
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def arguments(data: Path, store: Path, out: Path, *options: str) -> list[str]:
    base = ["fit", "--tower", "text", "--data", str(data), "--store", str(store), "--out", str(out), "--seed", "5"]
    base += ["--preset", "none"]
    base += ["--student.options", TINY, "--loader.batch_size", "8", "--trainer.accelerator", "cpu"]
    return [*base, "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false", *options]


def test_training_from_it_and_going_on_within_an_epoch_give_the_same_weights(
    tiny_data: Path,
    tiny_views_store: Path,
    tmp_path: Path,
    stop_at: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dropped = ["--student.word_dropout", "0.2", "--loss.names", "[cosine, bank_kl]", "--loss.bank", "9"]
    ordinary = fit(tiny_data, tiny_views_store, tmp_path / "ordinary", *dropped)
    assert "captions lie on" not in capsys.readouterr().out
    resident = fit(tiny_data, tiny_views_store, tmp_path / "resident", *dropped, "--loader.resident", "true")
    assert re.search(r"loader: 72 captions lie on cpu, 0\.0 MB", capsys.readouterr().out)
    assert all(torch.equal(ordinary[name], resident[name]) for name in ordinary)
    stop = stop_at(9 + 4, tmp_path / "cut/checkpoints")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(tiny_data, tiny_views_store, tmp_path / "cut", *dropped, "--loader.resident", "true", stop)
    again = ["--loader.resident", "true", "--resume"]
    resumed = fit(tiny_data, tiny_views_store, tmp_path / "cut", *dropped, *again)
    assert all(torch.equal(ordinary[name], resumed[name]) for name in ordinary)


def test_two_processes_draw_their_own_share(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, run_in_two: Callable[..., str]
) -> None:
    resident = ["--loader.resident", "true", "--trainer.max_epochs", "1"]
    one = fit(tiny_data, tiny_views_store, tmp_path / "one", *resident)
    two = ["--loader.batch_size", "4"]
    run_in_two(arguments(tiny_data, tiny_views_store, tmp_path / "two", *resident, *two))
    both = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name in one:
        if not name.endswith("in_proj_bias"):  # a key's bias has no gradient but rounding, which Adam makes large
            torch.testing.assert_close(one[name], both[name], atol=1e-4, rtol=1e-3)
