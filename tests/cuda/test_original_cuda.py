"""The original's four commands on a GPU, as they are written, with small students."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cuda
MAIN = Path(__file__).parents[2] / "main.py"
PARTS = {
    "image": ["--dataset=image_dataset", "--model_name=model_image_distilled"],
    "text": ["--dataset=text_dataset", "--model_name=model_text_distilled"],
}
SMALL = {
    "image": ["--input_resolution=32", "--patch_size=16", "--width=32", "--layers=1", "--heads=2"],
    "text": ["--transformer_width=32", "--transformer_layers=1", "--transformer_heads=2"],
}


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("strategy", [["--strategy=ddp"], []], ids=["ddp", "one"])
def test_the_command_runs_as_written(
    tower: str, strategy: list[str], device: str, tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(MAIN), "--data_dir", str(tiny_data), *strategy, "--gpus=0", "--precision=16"]
    command += ["--max_epochs=1", *PARTS[tower], *SMALL[tower], "--teacher_name", tiny_teacher, "--batch_size", "8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("this machine has no GPU" in done.stderr) == (device == "cpu")
    if device == "cuda":
        assert "on the GPU" in done.stdout, "what the run took of its memory"
    assert list(tmp_path.glob(f"checkpoint/model_{tower}_distilled/version_0/student/tower.safetensors"))
