"""Exported ONNX files, measured by `clip-distill evaluate` like the students that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_distill.cli import main as cli


def evaluate(out: Path, *options: object) -> dict[str, Any]:
    cli.main(["evaluate", "--out", str(out), "--workers", "0", "--device", "cpu", *map(str, options)])
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return report


def both(folder: Path) -> list[object]:
    return ["--image_student", folder, "--text_student", folder]


def test_float32_files_measure_as_their_students_do(
    exported: Path, tiny_runs: dict[str, Path], tiny_store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    given = ["--data", tiny_data, "--store", tiny_store]
    files = evaluate(tmp_path / "files.json", *given, *both(exported))
    students = ["--image_student", tiny_runs["image"], "--text_student", tiny_runs["text"]]
    torch = evaluate(tmp_path / "torch.json", *given, *students)
    assert files["pairings"] == torch["pairings"]
    for tower in ("image", "text"):
        found, expected = files["students"][tower], torch["students"][tower]
        assert found["name"] == str(exported) and found["parameters"] == expected["parameters"]
        assert found["mean_cosine"] == pytest.approx(expected["mean_cosine"], abs=1e-4)


def test_int8_files_are_measured_as_they_are(
    tiny_runs: dict[str, Path], tiny_store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    shipped, student = tmp_path / "shipped", ["--text_student", tiny_runs["text"]]
    cli.main(["export", *map(str, student), "--to", "onnx", "--weights", "int8", "--out", str(shipped)])
    given = ["--data", tiny_data, "--store", tiny_store]
    report = evaluate(tmp_path / "r.json", *given, *both(shipped))
    whole = evaluate(tmp_path / "whole.json", *given, *student)["students"]["text"]
    assert report["students"]["image"]["mean_cosine"] > 0.95  # the teacher's own tower, in int8
    assert report["students"]["text"]["mean_cosine"] == pytest.approx(whole["mean_cosine"], abs=0.05)
    assert report["students"]["text"]["mean_cosine"] != whole["mean_cosine"]


def test_files_of_another_teacher_are_refused(
    exported: Path, make_teacher: Callable[..., str], tiny_data: Path, tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=7)
    with pytest.raises(SystemExit, match=r"(?s)student .*weights_sha256: expected '\w+', found '\w+'"):
        evaluate(tmp_path / "r.json", "--data", tiny_data, "--teacher", other, *both(exported))
