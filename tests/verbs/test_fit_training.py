"""`clip-distill fit` with the switches of a long training, on small real files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file

from clip_distill.cli import main as cli
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import load_tower

STUDENTS = {
    "vit": ("image", "vit", "{input_resolution: 32, patch_size: 16, width: 32, layers: 2, heads: 2}"),
    "cut": ("image", "timm_cut", "{model: test_efficientnet, input_resolution: 32, hidden: 16}"),
    "text": ("text", "transformer", "{transformer_width: 16, transformer_layers: 2, transformer_heads: 2}"),
}


def arguments(student: str, data: Path, store: Path, out: Path, *options: str) -> list[str]:
    tower, name, sizes = STUDENTS[student]
    base = ["fit", "--preset", "none", "--tower", tower, "--data", str(data), "--store", str(store), "--out", str(out)]
    base += ["--student.name", name, "--student.options", sizes, "--loader.workers", "0", "--loader.batch_size", "8"]
    base += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    return [*base, "--trainer.log_every_n_steps", "1", "--seed", "4", *options]


def checkpoint(out: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(out / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def logged(out: Path, column: str) -> list[float]:
    with open(out / "logs/metrics.csv", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    for name in one:
        first, second = one[name].clone(), other[name]
        if name.endswith("in_proj_bias"):  # a key's bias has no gradient but rounding, which Adam makes large
            width = len(first) // 3
            first[width : 2 * width] = second[width : 2 * width]
        torch.testing.assert_close(first, second, atol=atol, rtol=1e-3)


class Watch(L.Callback):
    """Notes what the student weighs after every step, to work the average out by hand."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        torch.save(module.student.state_dict(), self.folder / f"{trainer.global_step}.pt")  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("student", ["vit", "cut", "text"])
def test_the_average_is_what_is_validated_and_saved(
    student: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "steps").mkdir()
    options = ["--ema", "0.5", "--optimizer.lr", "1e-2", "--trainer.max_epochs", "3"]
    watch = {"class_path": f"{__name__}.Watch", "init_args": {"folder": str(tmp_path / "steps")}}
    watched = [*options, f"--trainer.callbacks+={yaml.safe_dump(watch)}"]
    cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path / "run", *watched))
    steps = sorted((tmp_path / "steps").glob("*.pt"), key=lambda path: int(path.stem))
    states = [torch.load(path, weights_only=True) for path in steps]
    average = {name: value.double() for name, value in states[0].items()}
    for number, state in enumerate(states[1:], 1):
        decay = min(0.5, 1 - (1 + number) ** (-2 / 3))  # timm's warm-up
        for name, value in state.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    last, best = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "run", "best")
    assert all(torch.equal(value, states[-1][name]) for name, value in part(last, "student.").items())
    for name, value in part(last, "average.module.").items():
        torch.testing.assert_close(value, average[name].to(value.dtype), atol=1e-6, rtol=1e-5)
    saved = load_file(tmp_path / "run/student/tower.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in part(best, "average.module.").items())
    assert any(not torch.equal(saved[name], value) for name, value in part(best, "student.").items())
    cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path / "plain", *options, "--ema", "0"))
    plain = checkpoint(tmp_path / "plain")
    assert all(torch.equal(value, last[name]) for name, value in plain.items())  # averaging changes no step
    assert logged(tmp_path / "run", "val/cosine") != logged(tmp_path / "plain", "val/cosine")


SWITCHES = {
    "vit": ["--ema", "0.9", "--mixup", "0.5", "--optimizer.layer_decay", "0.7", "--checkpointing"],
    "cut": ["--ema", "0.9", "--mixup", "0.5", "--student.freeze", "1", "--checkpointing"],
    "text": ["--ema=0.9", "--optimizer.layer_decay=0.7", "--student.freeze=[ln_final]", "--student.word_dropout=0.3"],
}


@pytest.mark.parametrize("within_epoch", [False, True])
@pytest.mark.parametrize("student", SWITCHES)
def test_a_resumed_run_with_switches_gives_the_weights_of_an_uninterrupted_one(
    student: str,
    within_epoch: bool,
    tiny_data: Path,
    tiny_views_store: Path,
    tmp_path: Path,
    stop_at: Callable[..., str],
) -> None:
    options = [*SWITCHES[student], "--loss.names", "[cosine, gram_kl, queue_kl]"]
    cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path / "whole", *options))
    cut = arguments(student, tiny_data, tiny_views_store, tmp_path / "cut", *options)
    per_epoch = {"image": 3, "text": 9}[STUDENTS[student][0]]
    stop = stop_at(per_epoch + 1, tmp_path / "cut/checkpoints" if within_epoch else None)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        cli.main([*cut, stop])
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == (
        per_epoch + within_epoch
    )
    cli.main([*cut, "--resume", "true"])
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    assert whole.keys() == resumed.keys() and any(name.startswith("average.") for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("before", "after"), [(["--ema", "0.9"], []), ([], ["--ema", "0.9"])])
def test_a_run_cannot_go_on_with_an_average_that_it_never_had_nor_without_the_one_it_has(
    before: list[str], after: list[str], tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path, *before))
    more = ["--resume", "--trainer.max_epochs", "3"]
    with pytest.raises(SystemExit, match="an average of the weights"):
        cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path, *after, *more))


def test_two_processes_with_an_average_and_layer_wise_rates_train_the_student_of_one(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, run_in_two: Callable[..., str]
) -> None:
    options = ["--ema", "0.9", "--optimizer.layer_decay", "0.7", "--student.freeze", "1", "--checkpointing"]
    cli.main(arguments("vit", tiny_data, tiny_views_store, tmp_path / "one", *options))
    two = ["--loader.batch_size", "4"]
    command = arguments("vit", tiny_data, tiny_views_store, tmp_path / "two", *options, *two)
    printed = run_in_two(command)
    close(checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two"))
    assert "samples/s" in printed and printed.count("peak memory") == 1


@pytest.mark.parametrize("target", ["stored", "online"])
def test_mixup_trains_with_every_kind_of_loss(
    target: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    losses = "[cosine, l1, gram_kl, rkd_distance, infonce, queue_kl, bank_kl, affinity]"
    options = ["--target", target, "--loss.names", losses, "--mixup", "0.5"]
    cli.main(arguments("vit", tiny_data, tiny_views_store, tmp_path / "mixed", *options))
    cli.main(arguments("vit", tiny_data, tiny_views_store, tmp_path / "plain", *options[:-2]))
    mixed, plain = logged(tmp_path / "mixed", "train/cosine"), logged(tmp_path / "plain", "train/cosine")
    assert len(mixed) == len(plain) == 6
    assert mixed != plain
    assert logged(tmp_path / "mixed", "val/cosine")[-1] > -1  # no NaN


def test_accumulated_batches_train_as_large_ones_and_at_the_same_rates(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    common = ["--optimizer.warmup", "2", "--trainer.gradient_clip_val", "0.05"]
    small = ["--loader.batch_size", "4", "--trainer.accumulate_grad_batches", "2"]
    cli.main(arguments("vit", tiny_data, tiny_views_store, tmp_path / "large", *common))
    cli.main(arguments("vit", tiny_data, tiny_views_store, tmp_path / "small", *common, *small))
    close(checkpoint(tmp_path / "large"), checkpoint(tmp_path / "small"))
    rates = [logged(tmp_path / out, "lr-AdamW/pg1") for out in ("large", "small")]
    assert sorted(set(rates[0])) == pytest.approx(sorted(set(rates[1])))
    assert len(set(rates[0])) == 4  # of six steps; two pairs are alike


def test_accumulation_with_everything_else_counts_steps_not_batches(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    losses = ["--loss.names", "[cosine, gram_kl, queue_kl]", "--loss.options", "{queue_kl: {size: 20}}"]
    options = [*SWITCHES["cut"], *losses, "--trainer.accumulate_grad_batches", "2", "--loader.batch_size", "4"]
    cli.main(arguments("cut", tiny_data, tiny_views_store, tmp_path, *options))
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert len(last["state_dict"]["objective.losses.2._extra_state"]) == 20
    assert last["lr_schedulers"][0]["last_epoch"] == 6


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_trains(
    precision: str, student: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    options = ["--trainer.precision", precision, "--optimizer.lr", "1e-2", "--loss.names", "[cosine, bank_kl]"]
    cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path, *options, "--trainer.max_epochs", "4"))
    cosines = logged(tmp_path, "val/cosine")
    assert cosines[-1] > cosines[0]
    saved = load_file(tmp_path / "student/tower.safetensors").values()
    kinds = {value.dtype for value in saved if value.is_floating_point()}
    assert kinds == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    assert load_tower(tmp_path)[1] is not None


def test_a_frozen_beginning_keeps_the_teachers_weights(
    tiny_data: Path, tiny_teacher: str, tiny_views_store: Path, tmp_path: Path
) -> None:
    sizes = "{transformer_width: 32, transformer_layers: 2, transformer_heads: 2}"
    options = ["--student.init", "teacher", "--student.options", sizes, "--student.freeze", "1"]
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path, *options))
    theirs = load_teacher(tiny_teacher, "text")[1].state_dict()
    mine = load_file(tmp_path / "student/tower.safetensors")
    for name, value in mine.items():
        frozen = name in ("token_embedding.weight", "positional_embedding") or ".resblocks.0." in name
        assert torch.equal(value, theirs[name]) == frozen, name


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed")
def test_a_compiled_student_trains_alike_and_is_saved_under_the_same_names(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    sizes = "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}"
    options = ["--student.options", sizes, "--trainer.max_epochs", "1"]
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path / "eager", *options))
    cli.main(arguments("text", tiny_data, tiny_views_store, tmp_path / "compiled", *options, "--compile"))
    close(checkpoint(tmp_path / "eager"), checkpoint(tmp_path / "compiled"), atol=1e-3)
    assert load_tower(tmp_path / "compiled")[0].tower == "text"


@pytest.mark.parametrize("student", ["vit", "cut"])
def test_recomputed_blocks_train_the_same_student(
    student: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path / "kept"))
    cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path / "again", "--checkpointing"))
    close(checkpoint(tmp_path / "kept"), checkpoint(tmp_path / "again"))


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        ("text", ["--mixup", "0.2"], "tokens can't be mixed"),
        ("vit", ["--student.word_dropout", "0.1"], "expected --tower text, found image"),
        ("text", ["--student.word_dropout", "1"], "word_dropout: expected 0, or a share below 1, found 1"),
        ("text", ["--student.word_dropout=0.1", "--student.freeze=1"], "embeddings that train, found them frozen"),
        ("vit", ["--mixup", "-1"], "mixup: expected 0 or more, found -1"),
        ("text", ["--ema", "1"], "ema: expected 0, or a decay below 1, found 1"),
        ("text", ["--optimizer.layer_decay", "0"], "layer_decay: expected above 0 and up to 1, found 0"),
        ("text", ["--student.freeze", "3"], "up to 2 blocks or stages, found 3"),
        ("vit", ["--student.freeze", "[trunk]"], "expected modules of the student .*found 'trunk'"),
        ("text", ["--ema", "0.9", "--trainer.precision", "bf16-true"], "Use bf16-mixed"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(
    student: str, options: list[str], message: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments(student, tiny_data, tiny_views_store, tmp_path, *options))


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_steps_alone_may_end_a_run(schedule: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "5", "--optimizer.schedule", schedule]
    options += ["--optimizer.step_epochs", "1", "--optimizer.step_gamma", "0.5", "--optimizer.warmup", "0"]
    cli.main(arguments("cut", tiny_data, tiny_views_store, tmp_path / "run", *options))
    rates = logged(tmp_path / "run", "lr-AdamW/pg1")
    assert len(rates) == 5
    if schedule == "step":  # 24 photos are three batches
        assert rates == pytest.approx([1e-3] * 3 + [5e-4] * 2)
