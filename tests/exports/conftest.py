"""ONNX files that the verb wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_distill.cli import main as cli


@pytest.fixture(scope="session")
def exported(tiny_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verb leaves for both students, in float32."""
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    students = ["--image_student", str(tiny_runs["image"]), "--text_student", str(tiny_runs["text"])]
    cli.main(["export", *students, "--to", "onnx", "--out", str(folder)])
    return folder
