"""`clip-distill fit` on small real files: every test runs the command and looks at what it wrote."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_distill.cli import main as cli
from clip_distill.towers.spec import load_tower

TINY = {
    "image": "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}


@pytest.fixture(scope="module")
def store(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both towers and splits; two augmented views beside the plain one."""
    folder = tmp_path_factory.mktemp("full-store")
    options = ["--views", "3", "--augment", "crop_flip", "--workers", "0", "--device", "cpu"]
    cli.main(["embed", "--data", str(tiny_data), "--teacher", tiny_teacher, "--store", str(folder), *options])
    return folder


def fit(tower: str, data: Path, store: Path, out: Path, *options: str) -> None:
    base = ["--tower", tower, "--data", str(data), "--store", str(store), "--out", str(out)]
    base += ["--student.options", TINY[tower], "--loader.workers", "0", "--loader.batch_size", "8"]
    base += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    cli.main(["fit", "--preset", "none", *base, *options])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def logged(out: Path, column: str) -> list[float]:
    resumed = out / "logs/resumed-1/metrics.csv"
    with open(resumed if resumed.is_file() else out / "logs/metrics.csv", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_run_leaves_a_student_checkpoints_logs_and_its_recipe(
    tower: str, tiny_data: Path, store: Path, tmp_path: Path
) -> None:
    fit(tower, tiny_data, store, tmp_path / "run", "--trainer.max_epochs", "6", "--optimizer.lr", "1e-2")
    spec, _ = load_tower(tmp_path / "run")
    assert (spec.tower, spec.embed_dim) == (tower, 32)
    assert spec.teacher["weights_sha256"]
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "student/tower.safetensors", "recipe.yaml"):
        assert (tmp_path / "run" / name).is_file()
    assert list((tmp_path / "run/logs").glob("events.out.tfevents*"))
    cosines = logged(tmp_path / "run", "val/cosine")
    assert len(cosines) == 6
    assert cosines[-1] > cosines[0] + 0.05
    assert 0 <= min(logged(tmp_path / "run", "val/mean_recall")) <= 100


def test_the_best_epoch_by_recall_is_the_one_that_is_kept(tiny_data: Path, store: Path, tmp_path: Path) -> None:
    fit("text", tiny_data, store, tmp_path, "--trainer.max_epochs", "5", "--optimizer.lr", "1e-2")
    recalls = logged(tmp_path, "val/mean_recall")
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == recalls.index(max(recalls))
    saved = load_file(tmp_path / "student/tower.safetensors")
    assert all(torch.equal(saved[name], best["state_dict"][f"student.{name}"]) for name in saved)


def test_a_checkpoint_holds_the_student_alone_even_with_the_teacher_online(
    tiny_data: Path, store: Path, tmp_path: Path
) -> None:
    fit("image", tiny_data, store, tmp_path, "--target", "online", "--augment", "crop_flip")
    assert all(name.startswith("student.") for name in weights(tmp_path))
    assert set(load_file(tmp_path / "student/tower.safetensors")) == {
        n.removeprefix("student.") for n in weights(tmp_path)
    }


@pytest.mark.parametrize("tower", ["image", "text"])
def test_online_and_stored_targets_of_plain_views_train_the_same_student(
    tower: str, tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = ["--workers", "0", "--device", "cpu", "--dtype", "float32"]
    cli.main(["embed", "--data", str(tiny_data), "--teacher", tiny_teacher, "--store", str(store), *options])
    fit(tower, tiny_data, store, tmp_path / "stored", "--seed", "3")
    fit(tower, tiny_data, store, tmp_path / "online", "--seed", "3", "--target", "online")
    stored, online = weights(tmp_path / "stored"), weights(tmp_path / "online")
    for name in stored:
        torch.testing.assert_close(stored[name], online[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("within_epoch", [False, True])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    tower: str, within_epoch: bool, tiny_data: Path, store: Path, tmp_path: Path, stop_at: Callable[..., str]
) -> None:
    options = ["--trainer.max_epochs", "4", "--seed", "5"]
    fit(tower, tiny_data, store, tmp_path / "whole", *options)
    per_epoch = -(-{"image": 24, "text": 72}[tower] // 8)
    stop = stop_at(2 * per_epoch + 1, tmp_path / "cut/checkpoints" if within_epoch else None)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(tower, tiny_data, store, tmp_path / "cut", *options, stop)
    stopped_at = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert stopped_at == (2 * per_epoch + within_epoch)
    fit(tower, tiny_data, store, tmp_path / "cut", *options, "--resume", "true")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert logged(tmp_path / "cut", "val/cosine")[-1] == logged(tmp_path / "whole", "val/cosine")[-1]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_two_processes_train_the_student_of_one(
    tower: str, tiny_data: Path, store: Path, tmp_path: Path, run_in_two: Callable[..., str]
) -> None:
    loss = ["--loss.names", "[cosine, gram_kl]", "--seed", "2"]
    fit(tower, tiny_data, store, tmp_path / "one", *loss)
    base = ["--tower", tower, "--data", str(tiny_data), "--store", str(store), "--out", str(tmp_path / "two")]
    base += ["--student.options", TINY[tower], "--loader.workers", "0", "--loader.batch_size", "4", *loss]
    base += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    run_in_two(["fit", "--preset", "none", *base])
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        if name.endswith("in_proj_bias"):  # a key's bias has no gradient but rounding, which Adam makes large
            width = len(one[name]) // 3
            one[name][width : 2 * width] = two[name][width : 2 * width]
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)
    for metric in ("val/cosine", "val/mean_recall"):
        assert logged(tmp_path / "two", metric) == pytest.approx(logged(tmp_path / "one", metric), abs=1e-3)


def test_the_written_recipe_runs_again_to_the_same_weights(tiny_data: Path, store: Path, tmp_path: Path) -> None:
    fit("text", tiny_data, store, tmp_path / "first")
    recipe = str(tmp_path / "first/recipe.yaml")
    cli.main(["fit", "--recipe", recipe, "--out", str(tmp_path / "again")])
    first, again = weights(tmp_path / "first"), weights(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_folder_with_a_run_is_not_overwritten_unasked(
    tiny_data: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit("text", tiny_data, store, tmp_path)
    with pytest.raises(SystemExit, match="--resume to go on"):
        fit("text", tiny_data, store, tmp_path)
    fit("text", tiny_data, store, tmp_path, "--overwrite", "true")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss.names", "[l1, kl]", "--loss.weights", "[1]"], "2 names .* 1 weights"),
        (["--loss.names", "[nonsense]"], "unknown loss 'nonsense': expected one of affinity, bank_kl, ce"),
        (["--student.options.widht", "3"], "has no option widht; its options are"),
        (["--student.name", "vit", "--student.options", "{}"], "expected a student for the text tower"),
        (["--student.options", "{vocab_size: 100}"], "--student.options.vocab_size 49408"),
        (["--loader.val_batch_size", "4", "--trainer.limit_val_batches", "0.5"], "whole validation set"),
        (["--store", "."], "expected a finished store"),
        (["--store", "nowhere"], "--store nowhere: expected a folder or file, found nothing there"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(
    options: list[str], message: str, tiny_data: Path, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        fit("text", tiny_data, store, tmp_path, *options)


def test_an_unknown_key_of_a_recipe_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("tower: text\noptimiser: {lr: 1}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["fit", "--recipe", str(tmp_path / "r.yaml")])
    assert "optimiser" in capsys.readouterr().err


def test_a_loss_in_a_file_of_the_users_own_is_found(
    tiny_data: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_loss.py").write_text(
        "import torch\n\nclass Squared(torch.nn.Module):\n"
        "    def forward(self, student, target):\n        return (student - target).square().mean()\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    fit("text", tiny_data, store, tmp_path / "own", "--loss.names", '["my_own_loss:Squared"]', "--seed", "1")
    fit("text", tiny_data, store, tmp_path / "ours", "--loss.names", "[mse]", "--seed", "1")
    assert logged(tmp_path / "own", "val/cosine") == logged(tmp_path / "ours", "val/cosine")
