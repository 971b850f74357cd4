"""`clip-distill benchmark` from the command line, on a teacher and students of a layer or two."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_distill.cli import main as cli
from clip_distill.system.files import read_json

pytestmark = pytest.mark.usefixtures("warm_processes")

QUICK = ["--runtimes", "[eager]", "--batch_sizes", "[1, 2]", "--repeats", "3", "--rows", "8", "--device", "cpu"]


def test_teacher_and_student_are_compared_on_the_data(
    tiny_store: Path, tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["benchmark", "--store", str(tiny_store), "--text_student", str(tiny_runs["text"]), "--threads", "1"]
    cli.main([*argv, "--data", str(tiny_data), *QUICK, "--text_length", "8", "--out", str(tmp_path / "out")])
    report = read_json(tmp_path / "out/benchmark.json")
    assert report["settings"]["threads"] == 1
    assert report["machine"]["versions"]["torch"]
    variants = report["variants"]
    assert [(each["tower"], each["role"], each["runtime"]) for each in variants] == [
        ("text", role, "eager") for role in ("teacher", "student")
    ]
    for each in variants:
        assert each["inputs"] == "real"
        assert each["least_cosine"] > 0.9999
        assert [(case["batch"], case["tokens"]) for case in each["cases"]] == [(1, 77), (2, 77), (1, 8), (2, 8)]
        assert all(case["speedup"] > 0 for case in each["cases"])
    assert variants[0]["parameters"] > variants[1]["parameters"]
    shown = capsys.readouterr().out
    assert "text student" in shown
    assert "8 validation inputs" in shown
    assert (tmp_path / "out/benchmark.png").is_file() or "matplotlib is missing" in shown


def test_a_teacher_alone_is_measured_with_both_towers(tiny_teacher: str, tmp_path: Path) -> None:
    options = ["--runtimes", "[eager]", "--batch_sizes", "[1]", "--repeats", "2", "--rows", "2", "--device", "cpu"]
    cli.main(["benchmark", "--teacher", tiny_teacher, *options, "--out", str(tmp_path)])
    variants = read_json(tmp_path / "benchmark.json")["variants"]
    assert [each["tower"] for each in variants] == ["image", "text"]
    assert all(case["speedup"] == 1 for each in variants for case in each["cases"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --store, --teacher, or a student that says which teacher it has"),
        (["--runtimes", "[onnx]"], "expected eager among the runtimes"),
        (["--image_student", "no/where"], "no/where: expected a run's folder or a teacher's name"),
        (["--image_student", "nowhere"], "--image_student nowhere: expected a folder or file, found nothing there"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(["benchmark", *options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_student_of_another_teacher_is_refused(
    make_teacher: object, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=9)
    with pytest.raises(SystemExit, match="expected"):
        cli.main(["benchmark", "--teacher", other, "--text_student", str(tiny_runs["text"]), "--out", str(tmp_path)])
