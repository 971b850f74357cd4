"""`benchmarks/gpu.py`, the program itself, with models of a layer or two on the CPU."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks/gpu.py"
# which no training needs: a machine with a GPU that is lent for minutes need not have them
EXTRAS = "onnx onnxscript openvino executorch litert_torch coremltools sentence_transformers webdataset wandb s3fs "
EXTRAS += "moto imagehash ray fastapi uvicorn playwright clip_benchmark embedding_reader"


def check(out: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(PROGRAM), "--out", str(out), "--device", "cpu", "--tiny", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    records: list[dict[str, Any]] = json.loads((out / "gpu.json").read_text(encoding="utf-8"))["records"]
    return records


def test_every_stage_is_measured_and_written(tmp_path: Path) -> None:
    records = check(tmp_path, "--seconds", "200", "--stages", "1", "2", "3", "5")
    assert not [record for record in records if "failed" in record or "skipped" in record]
    assert {record["stage"] for record in records} == {"training", "embed", "memory", "quickstart"}
    training = [record for record in records if record["stage"] == "training" and "mode" in record]
    assert {record["mode"] for record in training} == {"floor", "original", "disk", "packed", "resident", "memory"}
    for record in training:
        assert record["rate"] > 0
        assert record["mode"] == "floor" or record["of_floor"] > 0
    for record in (record for record in records if record["stage"] == "embed"):
        assert record["share"] == record["rate"] / record["teacher_alone"]
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert all(f"## {stage}" in table for stage in ("training", "embed", "memory", "quickstart"))
    assert all(record["name"] in table for record in records)


def test_what_there_is_no_time_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--device", "cpu", "--tiny", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), "--out", str(tmp_path), *options])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(PROGRAM), run_name="__main__")
    records = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["records"]
    assert {record["stage"] for record in records} == {"training", "embed", "memory", "compile", "quickstart"}
    assert all("0 s are left" in record["skipped"] for record in records)


def test_a_stage_leaves_the_later_ones_their_part_of_the_time(tmp_path: Path) -> None:
    results = runpy.run_path(str(ROOT / "benchmarks/gpu_results.py"))["Results"](tmp_path, 1000, "cpu")
    results.keep_for(["memory", "quickstart"], ["embed", "memory", "quickstart"])
    assert results.left == pytest.approx(1000 * 15 / (15 + 15 + 30), abs=5)
    results.keep_for([], ["embed", "memory", "quickstart"])
    assert results.left == pytest.approx(1000, abs=5)
    record = results.measure("quickstart", "too long", 2000, dict)
    assert record["skipped"].startswith("needs about 2000 s, ")


def test_the_tests_for_a_gpu_are_found_where_extras_are_missing() -> None:
    code = (
        "import sys, pytest; sys.modules |= dict.fromkeys(sys.argv[1].split())\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-o', 'addopts=', '-p', 'no:cacheprovider',"
        " '--import-mode=importlib', '--assert=plain', '-m', 'cuda', 'tests']))"
    )
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code, EXTRAS], cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/cuda/test_fit_cuda.py::" in done.stdout
