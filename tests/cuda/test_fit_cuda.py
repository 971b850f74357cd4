"""`fit` on a GPU: every precision, going on, averaging, and each switch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.cuda
Fit = Callable[..., Path]
Read = Callable[[Path, str], list[float]]
State = Callable[[Path], dict[str, Tensor]]
CUT = (
    "--student.name",
    "timm_cut",
    "--student.options",
    "{model: test_efficientnet, input_resolution: 32, hidden: 16}",
)
# 8 validation photos: the recall of one more found is 12.5 points, so cosines are compared
NOISE = {"32-true": 0.02, "bf16-mixed": 0.05, "16-mixed": 0.05}


@pytest.fixture(scope="module", params=["image", "text"])
def on_the_cpu(request: pytest.FixtureRequest, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tower, and its run in float32 on the CPU."""
    out = tmp_path_factory.mktemp("cpu")
    return request.param, fit(request.param, out, *LEARNING, on="cpu")


LEARNING = ("--trainer.max_epochs", "6", "--optimizer.lr", "5e-3")


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed"])
def test_every_precision_learns_what_the_cpu_does(
    name: str, on_the_cpu: tuple[str, Path], fit: Fit, read: Read, at: Callable[[str], str], tmp_path: Path
) -> None:
    tower, reference = on_the_cpu
    out = fit(tower, tmp_path, *LEARNING, "--trainer.precision", at(name))
    losses = read(out, "train/loss")
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.8 * losses[0]
    assert read(out, "val/cosine")[-1] == pytest.approx(read(reference, "val/cosine")[-1], abs=NOISE[name])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    tower: str, fit: Fit, state: State, stop_at: Callable[..., str], tmp_path: Path
) -> None:
    """Bit for bit, with the kernels that add up in one order."""
    options = ("--trainer.deterministic", "true", "--student.word_dropout", "0.2" if tower == "text" else "0")
    whole = state(fit(tower, tmp_path / "whole", *options))
    stop = stop_at({"image": 4, "text": 13}[tower], tmp_path / "cut/checkpoints")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(tower, tmp_path / "cut", *options, stop)
    resumed = state(fit(tower, tmp_path / "cut", *options, "--resume"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Steep(nn.Module):
    """Cosine distance times 10⁷: too steep for float16 until the scaler has learnt it."""

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return 1e7 * (1 - nn.functional.cosine_similarity(student, target)).mean()


def test_steps_that_float16_skips_leave_weights_and_average_finite(
    fit: Fit, read: Read, state: State, at: Callable[[str], str], tmp_path: Path
) -> None:
    options = ["--loss.names", f'["{__name__}:Steep"]', "--ema", "0.9", "--trainer.precision", at("16-mixed")]
    out = fit("text", tmp_path, *options)
    found = state(out)
    assert all(value.isfinite().all() for value in found.values() if value.is_floating_point())
    averaged = {name.removeprefix("average.module."): value for name, value in found.items() if "average." in name}
    assert averaged
    assert any(not torch.equal(value, found[f"student.{name}"]) for name, value in averaged.items())
    assert all(math.isfinite(value) for value in read(out, "val/cosine"))


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize(
    "options",
    [
        ["--checkpointing"],
        ["--trainer.accumulate_grad_batches", "2"],
        ["--student.probe", "16"],
        ["--student.init", "teacher"],
        ["--target", "online"],
        ["--loss.names", "[cosine, gram_kl, queue_kl, bank_kl, icl]", "--loss.bank", "20"],
        ["--optimizer.layer_decay", "0.8", "--student.freeze", "1", "--ema", "0.99"],
    ],
    ids=lambda options: options[0].removeprefix("--") + options[1].removeprefix("--")[:8] if len(options) > 1 else "",
)
def test_switches_train_either_tower(tower: str, options: list[str], fit: Fit, read: Read, tmp_path: Path) -> None:
    out = fit(tower, tmp_path, *options, "--trainer.precision", "bf16-mixed")
    losses = read(out, "train/loss")
    assert len(losses) >= 3 and all(math.isfinite(loss) for loss in losses)
    assert (out / "student/tower.safetensors").is_file()


@pytest.mark.parametrize(
    "options",
    [
        ["--loader.packed", "PACKED"],
        ["--loader.packed", "PACKED", "--loader.workers", "1"],
        ["--loader.workers", "2"],
        ["--mixup", "0.3"],
        [*CUT, "--student.freeze", "2", "--loader.features", "PACKED"],
    ],
    ids=["packed", "packed-worker", "workers", "mixup", "features"],
)
def test_photos_come_in_every_way(options: list[str], fit: Fit, read: Read, tmp_path: Path) -> None:
    options = [str(tmp_path / "packed") if word == "PACKED" else word for word in options]
    losses = read(fit("image", tmp_path / "run", *options), "train/loss")
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_packed_photos_train_as_those_from_files(fit: Fit, state: State, tmp_path: Path) -> None:
    """The same batches, copied beside the step before: a copy that came too late would be another photo."""
    options = ["--trainer.deterministic", "true", "--loader.workers", "1"]
    files = state(fit("image", tmp_path / "files", *options))
    packed = state(fit("image", tmp_path / "packed", *options, "--loader.packed", str(tmp_path / "copy")))
    assert all(torch.equal(files[name], packed[name]) for name in files)


def test_captions_lie_on_the_device_and_train_the_same_student(
    device: str, fit: Fit, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trainer.deterministic", "true", "--student.word_dropout", "0.1"]
    ordinary = state(fit("text", tmp_path / "ordinary", *options, "--loader.resident", "false"))
    assert "captions lie on" not in capsys.readouterr().out
    wanted = "auto" if device == "cuda" else "true"
    resident = state(fit("text", tmp_path / "resident", *options, "--loader.resident", wanted))
    assert f"72 captions lie on {device}" in capsys.readouterr().out
    memory = state(fit("text", tmp_path / "memory", *options, "--loader.resident", "memory"))
    assert "72 captions lie on cpu" in capsys.readouterr().out
    assert all(torch.equal(ordinary[name], resident[name]) for name in ordinary)
    assert all(torch.equal(ordinary[name], memory[name]) for name in ordinary)


def test_a_compiled_student_trains_alike(fit: Fit, read: Read, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="a GPU's compiler is triton") if torch.cuda.is_available() else None
    eager = read(fit("text", tmp_path / "eager", "--trainer.max_epochs", "1"), "train/loss")
    compiled = read(fit("text", tmp_path / "compiled", "--trainer.max_epochs", "1", "--compile"), "train/loss")
    assert compiled == pytest.approx(eager, abs=0.02)


def test_both_students_train_together(fit: Fit, read: Read, tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    students = ["--image_student", str(tiny_runs["image"]), "--text_student", str(tiny_runs["text"])]
    losses = read(fit("both", tmp_path, *students, "--trainer.precision", "bf16-mixed"), "train/loss")
    assert all(math.isfinite(loss) for loss in losses)


def test_one_process_over_nccl_trains_as_none(fit: Fit, state: State, tmp_path: Path) -> None:
    """DDP with one process: nccl on a GPU, gloo on a CPU."""
    alone = state(fit("text", tmp_path / "alone", "--trainer.deterministic", "true"))
    options = ["--trainer.deterministic", "true", "--trainer.strategy", "ddp"]
    together = state(fit("text", tmp_path / "ddp", *options))
    assert all(torch.allclose(alone[name], together[name], atol=1e-6) for name in alone)
