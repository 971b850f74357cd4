"""Commands in processes of their own that are told to end, or find another at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_distill.cli import main as cli
from clip_distill.system.files import only_one


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_with_workers_saves_its_step_and_goes_on_by_what_it_says(
    number: signal.Signals, status: int, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my run"
    words = ["fit", "--tower", "image", "--preset", "none", "--data", str(tiny_data), "--store", str(tiny_views_store)]
    words += ["--student.options", "{width: 32, layers: 1, heads: 2, patch_size: 16, input_resolution: 32}", "--out"]
    words += [str(out), "--loader.workers", "2", "--loader.batch_size", "8", "--report", "false"]
    words += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "clip_distill", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch 2 of") for line in process.stdout)
        os.killpg(process.pid, number)  # as a terminal and a scheduler do
        _, said = process.communicate(timeout=90)
    assert process.returncode == status, said
    assert len(said.strip().splitlines()) == 1, said
    assert said.strip().endswith(f"clip_distill fit --recipe '{out}/recipe.yaml' --resume")
    cli.main(["fit", "--recipe", str(out / "recipe.yaml"), "--resume", "--trainer.max_epochs", "3"])
    assert (out / "student/tower.json").is_file()


def test_a_second_index_is_refused_and_a_question_answered_by_what_is_there(
    exported: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(tiny_data / "image"), "--student", str(exported), "--index", str(tmp_path)]
    cli.main([*words, "--index_only"])
    with only_one(tmp_path / ".lock", "x"):
        with pytest.raises(SystemExit, match=r"expected no other process to write there, found process \d+ on"):
            cli.main([*words, "--index_only"])
        capsys.readouterr()
        cli.main([*words, "--query", "a red circle", "--top", "3"])
        assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_second_export_to_a_folder_is_refused(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    with (
        only_one(tmp_path / ".out.lock", "x"),
        pytest.raises(SystemExit, match=rf"out: expected no other process .*, found process {os.getpid()} on"),
    ):
        cli.main(["export", "--image_student", str(tiny_runs["image"]), "--out", str(tmp_path / "out")])
