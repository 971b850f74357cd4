"""The original command line: what each flag maps to, and how mistakes end."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from clip_distill.losses.feature import KL
from clip_distill.original import command, trainer
from clip_distill.original.flags import STUDENT_FLAGS, make_parser, parse
from clip_distill.students.image import vit
from clip_distill.students.text import transformer
from clip_distill.train.settings import fit_parser

IMAGE = ["--dataset=image_dataset", "--model_name=model_image_distilled"]
TEXT = ["--dataset=text_dataset", "--model_name=model_text_distilled"]
FOUR_GPUS = ["--data_dir", "D", "--strategy=ddp", "--gpus=0,1,2,3", "--precision=16", "--max_epochs=100"]
ONE_GPU = ["--data_dir", "D", "--gpus=0", "--precision=16", "--max_epochs=100"]
TINY_TEXT = ["--transformer_width=16", "--transformer_layers=1", "--transformer_heads=2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and stores go below the working directory."""
    monkeypatch.chdir(tmp_path)


def plan(*argv: str, gpus: int = 4) -> command.Plan:
    return command.make_plan(parse(argv, trainer.flags()), gpus)


def recipe(made: command.Plan) -> Any:
    """What `clip-distill fit` understands."""
    return fit_parser().parse_args(made.fit[1:])


@pytest.mark.parametrize(("words", "tower"), [(IMAGE, "image"), (TEXT, "text")])
@pytest.mark.parametrize(("start", "devices"), [(FOUR_GPUS, [0, 1, 2, 3]), (ONE_GPU, [0])])
def test_the_four_commands_as_written(words: list[str], tower: str, start: list[str], devices: list[int]) -> None:
    made = plan(*start, *words)
    config = recipe(made)
    assert (config.tower, config.data) == (tower, "D")
    assert (config.trainer.accelerator, config.trainer.devices) == ("gpu", devices)
    assert config.trainer.strategy == ("ddp" if len(devices) > 1 else "auto")
    assert (config.trainer.precision, config.trainer.max_epochs) == ("16-mixed", 100)
    assert (config.loss.names, config.loss.weights) == (["kl", "l1", "ce"], [0.6, 0.35, 0.05])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.warmup) == (1e-3, 1e-5, 0)
    assert (config.optimizer.schedule, config.optimizer.step_epochs, config.optimizer.step_gamma) == ("step", 10, 0.5)
    assert (config.loader.batch_size, config.seed) == (64, 2023)
    assert config.out == f"checkpoint/model_{tower}_distilled/version_0"
    assert not made.warnings


def test_images_are_augmented_with_the_teacher_online_unless_no_augment_is_given() -> None:
    online, stored, text = plan(*IMAGE), plan(*IMAGE, "--no_augment"), plan(*TEXT)
    assert (recipe(online).target, recipe(online).augment) == ("online", "original")
    assert recipe(online).teacher == "ViT-B/32"
    assert any("far faster" in note for note in online.notes)
    assert [words[7:9] for words in online.embed] == [["--split", "val"]]
    for made, own, other in ((stored, "image", "text"), (text, "text", "image")):
        assert (recipe(made).target, recipe(made).augment) == ("stored", "none")
        assert made.embed[0][7:9] == ["--tower", own]
        assert "--split" not in made.embed[0]
        assert made.embed[1][7:11] == ["--tower", other, "--split", "val"]


@pytest.mark.parametrize(
    "written",
    [
        ["--loss", "l1", "ce", "kl", "--weight", "1", "2", "3.5", "--loss_scale", "1", "1", "10"],
        ["--loss", "l1,ce,kl", "--weight", "1,2,3.5", "--loss_scale=1,1,10"],
        ["--loss", "[l1, ce, kl]", "--weight=[1, 2, 3.5]", "--loss_scale", "[1,", "1,", "10]"],
        ["--loss", "['l1', 'ce', \"kl\"]", "--weight", "(1 2 3.5)", "--loss_scale", "[1, 1, 10]"],
    ],
)
def test_lists_are_read_however_they_are_written(written: list[str]) -> None:
    loss = recipe(plan(*TEXT, *written)).loss
    assert (loss.names, loss.weights, loss.scales) == (["l1", "ce", "kl"], [1, 2, 3.5], [1, 1, 10])


def test_every_flag_of_its_own_reaches_the_recipe() -> None:
    words = "--lr 2e-4 --weight_decay 0 --lr_scheduler cosine --lr_decay_min_lr 2e-5 --t 2 --batch_size 32 --seed 7"
    config = recipe(plan(*TEXT, *words.split(), *TINY_TEXT, "--num_workers", "3", "--save_dir", "runs", "--name", "a"))
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.schedule) == (2e-4, 0, "cosine")
    assert config.optimizer.min_lr == pytest.approx(0.1)
    assert config.loss.options == {"kl": {"temperature": 2.0}}
    assert (config.loader.batch_size, config.loader.workers, config.seed) == (32, 3, 7)
    assert config.student.options == {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
    assert config.out == "runs/a/version_0"
    steps = recipe(plan(*TEXT, "--lr_decay_steps", "3", "--lr_decay_rate", "0.1")).optimizer
    assert (steps.step_epochs, steps.step_gamma) == (3, 0.1)


def test_defaults_that_are_left_out_are_those_of_the_students_and_of_kl() -> None:
    for tower, builder in (("image", vit), ("text", transformer)):
        theirs = {name: inspect.signature(builder).parameters[name].default for name in STUDENT_FLAGS[tower]}
        assert theirs == {name: make_parser().get_default(name) for name in STUDENT_FLAGS[tower]}
    assert KL().temperature == make_parser().get_default("t")


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        (["--accumulate_grad_batches", "2"], "accumulate_grad_batches", 2),
        (["--limit_train_batches=10"], "limit_train_batches", 10),
        (["--limit_train_batches=0.5"], "limit_train_batches", 0.5),
        (["--fast_dev_run"], "fast_dev_run", True),
        (["--gradient_clip_val", "0.5"], "gradient_clip_val", 0.5),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--deterministic", "warn"], "deterministic", "warn"),
        (["--progress_bar_refresh_rate", "0"], "enable_progress_bar", False),
        (["--weights_summary", "None"], "enable_model_summary", False),
        (["--distributed_backend", "ddp"], "strategy", "ddp"),
        (["--accelerator", "ddp"], "strategy", "ddp"),
        (["--precision", "bf16"], "precision", "bf16-mixed"),
        (["--precision", "32"], "precision", "32-true"),
    ],
)
def test_arguments_of_the_trainer_are_handed_on(written: list[str], name: str, value: object) -> None:
    assert recipe(plan(*TEXT, *written)).trainer[name] == value


def test_steps_alone_are_not_cut_short_by_a_default_of_epochs() -> None:
    chosen = recipe(plan(*TEXT, "--max_steps", "500")).trainer
    assert (chosen.max_steps, chosen.max_epochs) == (500, -1)


def test_without_a_gpu_it_warns_and_uses_the_cpu() -> None:
    for words in (FOUR_GPUS, ONE_GPU, ["--accelerator", "gpu", "--devices", "4", "--precision", "16-mixed"]):
        made = plan(*IMAGE, *words, gpus=0)
        chosen = recipe(made).trainer
        assert (chosen.accelerator, chosen.devices, chosen.strategy) == ("cpu", "1", "auto")
        assert chosen.precision == "bf16-mixed"
        assert "no GPU" in made.warnings[0]
        assert "bf16-mixed" in made.warnings[1]
    assert recipe(plan(*TEXT, "--device", "cpu", "--precision=16")).trainer.precision == "bf16-mixed"


def test_gpus_are_numbers_of_gpus_that_are_there() -> None:
    with pytest.raises(ValueError, match="expected 0 to 3 on this machine, found .7."):
        plan(*TEXT, "--gpus=0,7")
    assert recipe(plan(*TEXT, "--gpus=[1, 3]")).trainer.devices == [1, 3]
    assert recipe(plan(*TEXT, "--gpus=-1")).trainer.devices == "auto"


def test_the_teacher_runs_on_the_first_gpu_that_is_named() -> None:
    assert plan(*TEXT, "--gpus=2").embed[0][-2:] == ["--device", "cuda:2"]
    assert "--device" not in plan(*TEXT, "--gpus=0").embed[0]
    assert "--device" not in plan(*TEXT, "--gpus=2", gpus=0).embed[0]


def test_flags_that_mean_something_else_today_are_noted() -> None:
    words = "--log_dir l --cache_dir c --aug_prob 0.1 --load_best --lr_decay_min_lr 0.1 --transformer_width 64 --t 2"
    made = plan(*IMAGE, *words.split(), "--loss", "l1", "--weight", "1")
    for name in ("log_dir", "cache_dir", "aug_prob", "load_best", "lr_decay_min_lr", "transformer_width", "t"):
        assert sum(note.startswith(f"--{name}: ") for note in made.notes) == 1
    assert made.store.startswith("c/vit-b-32-")
    assert not any(note.startswith("--") for note in plan(*IMAGE).notes)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["--dataset=text_dataset"], "--dataset text_dataset goes with --model_name model_text_distilled"),
        (["--loss", "l1", "ce", "--weight", "1"], "2 losses .* 1 weights"),
        (["--loss", "l1", "--weight", "1", "--loss_scale", "1", "2"], "1 losses .* 2 scales"),
        (["--weight", "a"], "expected numbers"),
        (["--max_epoch", "3"], "unknown argument --max_epoch: the nearest known one is --max_epochs"),
        (["--limit_train_batch=3"], "nearest known one is --limit_train_batches"),
        (["--auto_lr_find"], "--auto_lr_find no longer exists: .* choose --lr"),
        (["--default_root_dir", "x"], "--default_root_dir no longer exists: the run goes to --save_dir"),
        (["--gpus=0", "--devices=1"], "--gpus and --devices"),
        (["--gpus=0", "--device=cpu"], "contradict each other"),
        (["--load_dir", "nowhere"], "nowhere: expected a run to go on with"),
    ],
)
def test_mistakes_end_with_what_was_expected(
    written: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--data_dir", "D", *written])
    assert re.search(message, capsys.readouterr().err)


def test_a_wrong_value_of_the_trainer_is_told_before_the_teacher_runs(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--data_dir", str(tiny_data), "--teacher_name", tiny_teacher, *TEXT, "--precision", "17"])
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "checkpoint/model_text_distilled/version_0").exists()


def test_several_processes_that_others_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun"):
        plan(*TEXT)


def test_runs_never_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoint/model_text_distilled/version_7").mkdir(parents=True)
    outs = [plan(*TEXT).out.name, plan(*TEXT).out.name, plan(*TEXT, "--version", "3").out.name]
    assert outs == ["version_8", "version_9", "version_3"]
    (tmp_path / "checkpoint/model_text_distilled/version_3/checkpoints").mkdir()
    with pytest.raises(FileExistsError, match="Leave --version out"):
        plan(*TEXT, "--version", "3")


def test_one_store_for_one_teacher_and_data_by_whatever_path(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tiny_data)
    first = plan(*TEXT, "--data_dir", str(tiny_data), "--teacher_name", f"local-dir:{tmp_path}/my_clip").store
    assert plan(*TEXT, "--data_dir", "link", "--teacher_name", "local-dir:my_clip").store == first
    assert first.startswith("cache/my-clip-")
    assert plan(*TEXT, "--data_dir", "link", "--teacher_name", "local-dir:other/my_clip").store != first
    assert plan(*TEXT, "--data_dir", ".", "--teacher_name", "local-dir:my_clip").store != first
