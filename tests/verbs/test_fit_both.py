"""`clip-distill fit --tower both` on small real files: what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clip_distill.cli import main as cli
from clip_distill.towers.spec import TOWERS, load_tower


def arguments(data: Path, store: Path, runs: dict[str, Path], out: Path, *options: str) -> list[str]:
    base = ["fit", "--preset", "none", "--tower", "both", "--data", str(data), "--store", str(store), "--out", str(out)]
    base += ["--image_student", str(runs["image"]), "--text_student", str(runs["text"])]
    base += ["--loader.workers", "0", "--loader.batch_size", "8", "--trainer.accelerator", "cpu", "--seed", "4"]
    base += ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
    return [*base, *options]


def last(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints/last.ckpt", weights_only=True)


def logged(out: Path, column: str) -> list[float]:
    with open(out / "logs/metrics.csv", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def test_a_run_leaves_two_students_that_evaluate_and_export_take(
    tiny_data: Path,
    tiny_views_store: Path,
    tiny_runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "both"
    options = ["--trainer.max_epochs", "8", "--optimizer.lr", "1e-2"]
    cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, run, *options))
    assert "48 pairs of 24 photos and 48 captions" in capsys.readouterr().out  # captions without a photo are left out
    assert last(run)["global_step"] == 8 * 6
    for column in ("train/image_cosine", "train/text_cosine", "train/both_affinity"):
        losses = logged(run, column)
        assert sum(losses[-6:]) < sum(losses[:6]), column
    for column in ("val/image_cosine", "val/text_cosine"):
        assert logged(run, column)[-1] > logged(run, column)[0], column
    recalls = logged(run, "val/mean_recall")
    assert len(recalls) == len(logged(run, "val/t2i_r10")) == 8
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == recalls.index(max(recalls))
    for tower in TOWERS:
        saved, before = (
            load_file(each / "tower.safetensors") for each in (run / "student" / tower, tiny_runs[tower] / "student")
        )
        assert all(torch.equal(saved[name], best["state_dict"][f"student.{tower}.{name}"]) for name in saved)
        assert saved.keys() == before.keys() and any(not torch.equal(saved[name], before[name]) for name in saved)
        assert load_tower(run / "student" / tower)[0] == load_tower(tiny_runs[tower])[0]
    students = ["--image_student", str(run), "--text_student", str(run / "student/text")]
    where = ["--data", str(tiny_data), "--store", str(tiny_views_store), "--workers", "0", "--device", "cpu"]
    cli.main(["evaluate", *where, *students, "--out", str(tmp_path / "report.json")])
    pairings = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["pairings"]
    (found,) = [each["mean_recall"] for each in pairings if each["image"] == each["text"] == "student"]
    assert found == pytest.approx(max(recalls))  # what the training measured
    cli.main(["export", "--store", str(tiny_views_store), *students, "--out", str(tmp_path / "exported")])
    assert (tmp_path / "exported/open_clip_config.json").is_file()
    exported = {tower: f"local-dir:{tmp_path / 'exported'}" for tower in TOWERS}
    again = arguments(tiny_data, tiny_views_store, exported, tmp_path / "again", "--trainer.max_epochs", "1")  # type: ignore[arg-type]
    cli.main(again)
    assert load_tower(tmp_path / "again/student/text")[0].teacher["weights_sha256"]


def test_a_run_goes_on_from_its_own_recipe_within_an_epoch_as_if_never_stopped(
    tiny_data: Path,
    tiny_views_store: Path,
    tiny_runs: dict[str, Path],
    tmp_path: Path,
    stop_at: Callable[..., str],
) -> None:
    losses = ["--loss.names", "[cosine, queue_kl, icl]", "--loss.between", "{both_affinity: 1.0, both_infonce: 0.5}"]
    options = [*losses, "--ema", "0.9", "--checkpointing"]
    cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path / "whole", *options))
    cut = [*options, stop_at(8, tmp_path / "cut/checkpoints")]
    with pytest.raises(RuntimeError, match="stopped by the test"):
        cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path / "cut", *cut))
    assert last(tmp_path / "cut")["global_step"] == 8
    recipe = yaml.safe_load((tmp_path / "cut/recipe.yaml").read_text(encoding="utf-8"))
    recipe["trainer"].pop("callbacks")
    (tmp_path / "cut/recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    cli.main(["fit", "--recipe", str(tmp_path / "cut/recipe.yaml"), "--resume"])
    whole, resumed = last(tmp_path / "whole")["state_dict"], last(tmp_path / "cut")["state_dict"]
    assert whole.keys() == resumed.keys() and "average.module.text.token_embedding.weight" in whole
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_frozen_student_stays_and_a_bank_serves_each_tower(
    tiny_data: Path, tiny_views_store: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    options = ["--student.freeze", "[image]", "--loss.names", "[bank_kl]", "--loss.between", "{}"]
    options += ["--loader.packed", str(tmp_path / "packed"), "--trainer.max_epochs", "1"]
    cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path / "run", *options))
    for tower in TOWERS:
        saved, before = (
            load_file(each / "tower.safetensors")
            for each in (tmp_path / "run/student" / tower, tiny_runs[tower] / "student")
        )
        assert all(torch.equal(saved[name], before[name]) for name in saved) == (tower == "image")
    assert logged(tmp_path / "run", "train/text_bank_kl")


def test_a_learning_rate_is_sought_and_nothing_left_behind(
    tiny_data: Path,
    tiny_views_store: Path,
    tiny_runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path / "run", "--find_lr"))
    assert "learning rate  loss (smoothed)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_two_processes_train_the_students_of_one(
    tiny_data: Path, tiny_views_store: Path, tiny_runs: dict[str, Path], tmp_path: Path, run_in_two: Callable[..., str]
) -> None:
    options = ["--loss.between", "{both_affinity: 1.0, both_infonce: 0.5}", "--trainer.max_epochs", "1"]
    cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path / "one", *options))
    two = ["--loader.batch_size", "4"]
    command = arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path / "two", *options, *two)
    run_in_two(command)
    one, both = (last(tmp_path / run)["state_dict"] for run in ("one", "two"))
    assert one.keys() == both.keys()
    for name in one:
        if not name.endswith("in_proj_bias"):  # a key's bias has no gradient but rounding, which Adam makes large
            torch.testing.assert_close(one[name], both[name], atol=1e-4, rtol=1e-3)
    assert logged(tmp_path / "one", "val/t2i_r10") == pytest.approx(logged(tmp_path / "two", "val/t2i_r10"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tower", "image"], "image_student, text_student and loss.between: expected --tower both, found image"),
        (["--text_student", "null"], "expected --text_student RUN, a folder that fit wrote, found none"),
        (["--student.options", "{width: 8}", "--mixup", "0.2"], r"found student \(but for freeze\), mixup\. Leave"),
        (["--student.freeze", "2"], r"found student.freeze by number.*--student.freeze '\[image\]'"),
        (["--target", "online"], "found target online"),
        (["--translations", "zh.tsv"], "found translations"),
        (["--loader.features", "features"], "found loader.features"),
        (["--optimizer.layer_decay", "0.8"], "found optimizer.layer_decay"),
        (["--loss.between", "{affinities: 1}"], "unknown loss 'affinities': expected one of both_affinity"),
        (["--loss.options", "{both_infonce: {temperature: 1}}"], r"options are given for \['both_infonce'\]"),
        (["--image_student", "runs/nowhere"], "runs/nowhere: expected a run's folder or a teacher's name"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(
    options: list[str],
    message: str,
    tiny_data: Path,
    tiny_views_store: Path,
    tiny_runs: dict[str, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments(tiny_data, tiny_views_store, tiny_runs, tmp_path, *options))


def test_students_are_of_the_stores_teacher_and_of_the_tower_that_is_meant(
    tiny_data: Path, tiny_views_store: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    swapped = {"image": tiny_runs["text"], "text": tiny_runs["image"]}
    with pytest.raises(SystemExit, match="expected the run of a student for images, found one for texts"):
        cli.main(arguments(tiny_data, tiny_views_store, swapped, tmp_path))
    stranger = tmp_path / "stranger"
    for file in (tiny_runs["text"] / "student").iterdir():
        stranger.mkdir(exist_ok=True)
        (stranger / file.name).write_bytes(file.read_bytes())
    spec = json.loads((stranger / "tower.json").read_text(encoding="utf-8"))
    spec["teacher"]["weights_sha256"] = "0" * 64
    (stranger / "tower.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(SystemExit, match="text_student .*stranger was made from something else"):
        cli.main(arguments(tiny_data, tiny_views_store, tiny_runs | {"text": stranger}, tmp_path / "run"))
