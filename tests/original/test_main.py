"""Real runs of `main.py` on small real files."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from clip_distill.cli import main as cli
from clip_distill.original import command, trainer

MAIN = Path(__file__).parents[2] / "main.py"
IMAGE = ["--dataset=image_dataset", "--model_name=model_image_distilled"]
TEXT = ["--dataset=text_dataset", "--model_name=model_text_distilled"]
FOUR_GPUS = ["--strategy=ddp", "--gpus=0,1,2,3", "--precision=16"]
TINY_IMAGE = ["--input_resolution=32", "--patch_size=16", "--width=32", "--layers=1", "--heads=2", "--num_workers=0"]
TINY_TEXT = ["--transformer_width=16", "--transformer_layers=1", "--transformer_heads=2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and stores go below the working directory."""
    monkeypatch.chdir(tmp_path)


def main_py(argv: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """One thread a process: the sums of several are rounded otherwise."""
    words = [sys.executable, str(MAIN), *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def printed(output: str) -> list[list[str]]:
    """Arguments of each clip-distill command in the output."""
    lines = [line.strip() for line in output.splitlines() if line.startswith("  clip-distill ")]
    return [shlex.split(line)[1:] for line in lines]


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.skipif(trainer.count_gpus() > 0, reason="shows what happens without a GPU")
def test_the_image_command_runs_as_written_and_the_printed_one_trains_the_same_weights(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path, one_thread: None
) -> None:
    argv = ["--data_dir", str(tiny_data), *FOUR_GPUS, "--max_epochs=2", *IMAGE]
    done = main_py([*argv, "--teacher_name", tiny_teacher, *TINY_IMAGE, "--batch_size", "8"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: --gpus: this machine has no GPU" in done.stderr
    assert "--output_dim 512: the student's width is its teacher's, 32" in done.stdout
    embed, fitted = printed(done.stdout)
    out = tmp_path / "checkpoint/model_image_distilled/version_0"
    assert (out / "student/tower.safetensors").is_file()
    assert sorted(path.name for path in (tmp_path / fitted[6]).iterdir()) == ["image-val", "text-val"]
    again = [str(tmp_path / word) if word == fitted[6] else word for word in fitted]
    again[again.index("--out") + 1] = str(tmp_path / "again")
    cli.main(embed)
    cli.main([*again, "--trainer.enable_progress_bar", "false"])
    first, second = weights(out), weights(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_text_under_ddp_is_embedded_and_announced_once_into_one_folder(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    argv = ["--data_dir", str(tiny_data), "--teacher_name", tiny_teacher, *TEXT, *TINY_TEXT, "--max_epochs=1"]
    ddp = ["--strategy=ddp", "--accelerator", "cpu", "--devices", "2", "--batch_size", "8"]
    done = main_py([*argv, *ddp], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr + done.stdout
    assert done.stdout.count("main.py stands for:") == 1
    assert done.stdout.count("text-train: 72 rows") == 1
    (out,) = (tmp_path / "checkpoint/model_text_distilled").iterdir()
    (embed_text, embed_image, fitted) = printed(done.stdout)
    assert (embed_text[0], embed_image[0], fitted[0]) == ("embed", "embed", "fit")
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == -(-72 // 16)


def test_a_run_goes_on_where_its_folder_is_named(tiny_data: Path, tiny_teacher: str, tmp_path: Path) -> None:
    argv = ["--data_dir", str(tiny_data), "--teacher_name", tiny_teacher, *TEXT, *TINY_TEXT]
    argv += ["--device=cpu", "--enable_progress_bar=false", "--limit_train_batches=2", "--batch_size=8"]
    command.main([*argv, "--max_epochs=1"])
    out = tmp_path / "checkpoint/model_text_distilled/version_0"
    command.main([*argv, "--max_epochs=2", "--load_v_num=0"])
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    command.main([*argv, "--max_epochs=3", f"--resume_from_checkpoint={out}/checkpoints/last.ckpt"])
    command.main([*argv, "--max_epochs=4", "--load_dir=checkpoint/model_text_distilled", "--load_ver=version_0"])
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
    assert [path.name for path in out.parent.iterdir()] == ["version_0"]
    command.main([*argv, "--fast_dev_run"])
    assert {path.name for path in out.parent.iterdir()} == {"version_0", "version_1"}
