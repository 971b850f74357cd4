"""`clip-distill fit` with the losses that need more than a batch, and the other relational ones."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_distill.cli import main as cli
from clip_distill.recipe import Loss, Recipe
from clip_distill.store.ensemble import open_table
from clip_distill.train.tables import draw_bank, open_tables

TINY = {
    "image": "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}
RELATIONAL = ("gram_kl", "rkd_distance", "infonce", "queue_kl", "bank_kl", "affinity")


def arguments(tower: str, data: Path, store: Path, out: Path, *options: str) -> list[str]:
    base = ["fit", "--preset", "none", "--tower", tower, "--data", str(data), "--store", str(store), "--out", str(out)]
    base += ["--student.options", TINY[tower], "--loader.workers", "0", "--loader.batch_size", "8", "--seed", "2"]
    base += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    return [*base, "--trainer.log_every_n_steps", "1", *options]


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def logged(out: Path, column: str) -> list[float]:
    with open(out / "logs/metrics.csv", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("loss", RELATIONAL)
def test_every_loss_trains_either_tower(
    loss: str, tower: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    cli.main(arguments(tower, tiny_data, tiny_views_store, tmp_path, "--loss.names", f"[{loss}]"))
    values = logged(tmp_path, f"train/{loss}")
    assert len(values) == {"image": 3, "text": 9}[tower]
    assert all(math.isfinite(value) and value > 0 for value in values)
    beside = {name for name in state(tmp_path) if not name.startswith("student.")}
    assert beside == ({"objective.losses.0._extra_state"} if loss == "queue_kl" else set())


def test_two_processes_train_the_student_of_one(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, run_in_two: Callable[..., str]
) -> None:
    loss = ["--loss.names", f"[{', '.join(RELATIONAL)}]", "--loss.options", "{queue_kl: {size: 20}}"]
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path / "one", *loss))
    two = ["--loader.batch_size", "4"]
    command = arguments("text", tiny_data, tiny_views_store, tmp_path / "two", *loss, *two)
    run_in_two(command)
    one, both = state(tmp_path / "one"), state(tmp_path / "two")
    place = RELATIONAL.index("queue_kl")
    queues = [each.pop(f"objective.losses.{place}._extra_state") for each in (one, both)]
    assert [len(queue) for queue in queues] == [20, 20]
    for name in one:
        if name.endswith("in_proj_bias"):  # a key's bias has no gradient but rounding, which Adam makes large
            width = len(one[name]) // 3
            one[name][width : 2 * width] = both[name][width : 2 * width]
        torch.testing.assert_close(one[name], both[name], atol=5e-4, rtol=1e-3)
    # the same samples, in the order of the processes
    torch.testing.assert_close(*(queue[:16].sort(dim=0).values for queue in queues))


def test_a_resumed_run_with_a_queue_and_a_bank_gives_the_weights_of_an_uninterrupted_one(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, stop_at: Callable[..., str]
) -> None:
    loss = ["--loss.names", "[queue_kl, bank_kl]", "--loss.bank", "7", "--trainer.max_epochs", "2"]
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path / "whole", *loss))
    cut = arguments("text", tiny_data, tiny_views_store, tmp_path / "cut", *loss)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        cli.main([*cut, stop_at(11)])
    cli.main([*cut, "--resume", "true"])
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert len(whole["objective.losses.0._extra_state"]) == 2 * 72
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def bank(store: Path, tower: str = "image", seed: int = 0, **options: Any) -> torch.Tensor:
    recipe = Recipe(tower, None, str(store), "out", loss=Loss(["bank_kl"], **options), seed=seed)  # type: ignore[arg-type]
    return draw_bank(recipe.loss, open_tables(recipe), recipe.one, seed)["bank"]


def test_the_bank_is_a_sample_of_the_other_towers_training_table(tiny_views_store: Path) -> None:
    texts = torch.from_numpy(open_table(tiny_views_store, "text", "train").all_embeddings()).float()
    drawn = bank(tiny_views_store)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn.sort(dim=0).values, texts.sort(dim=0).values)  # all 72 there are, each once
    few = bank(tiny_views_store, bank=10)
    assert len(few.unique(dim=0)) == 10
    assert all(any(torch.equal(row, text) for text in texts) for row in few)
    assert torch.equal(few, bank(tiny_views_store, bank=10))
    assert not torch.equal(few, bank(tiny_views_store, bank=10, seed=1))
    images = torch.from_numpy(open_table(tiny_views_store, "image", "train").all_embeddings()).float()
    assert torch.equal(bank(tiny_views_store, "text").sort(dim=0).values, images.sort(dim=0).values)


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_a_store_without_the_other_towers_table_is_told_how_to_get_it(
    tower: str, other: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_views_store, store, ignore=shutil.ignore_patterns(f"{other}-train"))
    with pytest.raises(SystemExit, match=f"bank_kl: expected the teacher's {other} embeddings(.|\n)*--tower {other}"):
        cli.main(arguments(tower, tiny_data, store, tmp_path / "run", "--loss.names", "[cosine, bank_kl]"))
    cli.main(arguments(tower, tiny_data, store, tmp_path / "run", "--loss.names", "[cosine]"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss.names", "[affinity]", "--loss.bank", "0"], "--loss.bank of 1 or more, found 0"),
        (["--loss.names", "[bank_kl]", "--loss.options", "{bank_kl: {temperature: 0}}"], "temperature > 0, found 0"),
        (["--loss.names", "[queue_kl]", "--loss.options", "{queue_kl: {length: 3}}"], "does not take the options"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(
    options: list[str], message: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path, *options))


def test_a_loss_of_ones_own_may_ask_for_the_bank(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_bank_loss.py").write_text(
        "import torch\n\nclass Squared(torch.nn.Module):\n    needs = ('bank',)\n\n"
        "    def forward(self, student, target, bank):\n        return ((student - target) @ bank.T).square().mean()\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    options = ["--loss.names", '["my_bank_loss:Squared"]', "--loss.bank", "5"]
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path / "run", *options))
    assert len(logged(tmp_path / "run", "train/my_bank_loss:Squared")) == 9
