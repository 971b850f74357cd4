"""A run that is stopped, or whose checkpoint is damaged, by the real command on small files."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from clip_distill.cli import main as cli
from clip_distill.system.files import only_one
from clip_distill.towers.spec import load_tower

OPTIONS = ["--preset", "none", "--tower", "image", "--loader.batch_size", "8", "--trainer.accelerator", "cpu"]
OPTIONS += [
    "--student.options",
    "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
    "--seed",
    "5",
    "--loader.workers",
    "0",
]
OPTIONS += ["--loader.workers", "0", "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false"]


class Signal(L.Callback):
    """Sends the program a signal amid a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def store(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    options = ["--teacher", tiny_teacher, "--workers", "0", "--device", "cpu"]
    cli.main(["embed", "--data", str(tiny_data), "--store", str(folder), *options])
    return folder


@pytest.fixture
def fit(tiny_data: Path, store: Path) -> Callable[..., None]:
    def run(out: Path, *options: str) -> None:
        cli.main(["fit", "--data", str(tiny_data), "--store", str(store), "--out", str(out), *OPTIONS, *options])

    return run


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_resuming_gives_the_weights_of_an_uninterrupted_run(
    number: int, status: int, fit: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "whole")
    callback = {"class_path": f"{__name__}.Signal", "init_args": {"step": 4, "number": int(number)}}
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path / "a run", f"--trainer.callbacks+={yaml.safe_dump(callback)}")
    assert ended.value.code == status
    last = tmp_path / "a run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "the step is saved; go on with: " in said
    assert said.endswith(f"clip-distill fit --recipe '{tmp_path}/a run/recipe.yaml' --resume")
    fit(tmp_path / "a run", "--resume")
    whole, resumed = state_of(tmp_path / "whole/checkpoints/last.ckpt"), state_of(last)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "a run").glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_checkpoint_is_named_and_the_best_one_offered(
    damage: str, fit: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path)
    last, best = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/best.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 255
    last.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(SystemExit, match=r"last\.ckpt: expected a whole checkpoint, found one that is cut or damaged"):
        fit(tmp_path, "--resume")
    before = state_of(best)
    fit(tmp_path, "--resume", "best", "--optimizer.lr", "0", "--optimizer.weight_decay", "0")
    after = state_of(last)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_refused_where_another_process_writes(fit: Callable[..., None], tmp_path: Path) -> None:
    with (
        only_one(tmp_path / ".lock", "the other"),
        pytest.raises(SystemExit, match=r"expected no other process to write there, found process \d+ on .*, since 2"),
    ):
        fit(tmp_path)
    fit(tmp_path)
    assert load_tower(tmp_path)[0].tower == "image"


def test_a_folder_without_a_checkpoint_holds_no_run(fit: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()  # as after a disk that was full at the first one
    fit(tmp_path)
    assert load_tower(tmp_path)[0].tower == "image"
