"""The table and the chart, from records such as `measure` gives."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from clip_distill.benchmarking import chart
from clip_distill.benchmarking.report import add_speedups, machine, show


def record(tower: str, role: str, runtime: str, times: dict[tuple[int, int | None], float]) -> dict[str, Any]:
    cases = [
        {"batch": batch, "tokens": tokens, "flops": batch * 3 * 10**9, "median_seconds": seconds}
        | {"p90_seconds": 2 * seconds, "runs": 5, "turn_seconds": [seconds, 2 * seconds, 9.0]}
        for (batch, tokens), seconds in times.items()
    ]
    shared = {"tower": tower, "role": role, "runtime": runtime, "parameters": 1_230_000, "file_bytes": 4_900_000}
    closeness = {"inputs": "random", "rows": 64, "cosine": 0.98765, "least_cosine": 0.9, "neighbour_overlap": 0.875}
    return shared | closeness | {"peak_bytes": 55_000_000, "cases": cases}


@pytest.fixture
def report() -> dict[str, Any]:
    variants = [
        record("text", "teacher", "eager", {(1, 77): 0.04, (32, 77): 0.8, (1, 16): 0.01, (32, 16): 0.2}),
        record("text", "student", "eager", {(1, 77): 0.01, (32, 77): 0.1}),
        record("text", "student", "onnx", {(1, 77): 0.002, (32, 77): 0.05, (1, 9): 0.001, (32, 9): 0.01}),
        {"tower": "text", "role": "student", "runtime": "onnx-int8", "inputs": "random", "failed": "OSError: no"},
        record("image", "student", "eager", {(1, None): 0.123, (32, None): 1.0}),
    ]
    add_speedups(variants)
    return {
        "machine": machine(),
        "settings": {"threads": 2, "device": "cpu", "batch_sizes": [1, 32]},
        "variants": variants,
    }


def test_speed_is_relative_to_the_teacher_in_eager_at_the_same_shape(report: dict[str, Any]) -> None:
    speedups = [[case["speedup"] for case in each.get("cases", [])] for each in report["variants"]]
    assert speedups[0] == [1, 1, 1, 1]
    assert speedups[1] == pytest.approx([4, 8])
    # turn by turn: 4, 4, and 1 in the turn that something else slowed down
    assert report["variants"][1]["cases"][0]["speedup_quartiles"] == pytest.approx([2.5, 4])
    assert speedups[2][:2] == pytest.approx([20, 16])
    assert speedups[2][2:] == [None, None]  # the teacher was not measured at 9 tokens
    assert speedups[4] == [None, None]


def test_the_table_shows_every_variant_and_why_one_is_missing(report: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=60)
    show(report, console)
    shown = console.file.getvalue()
    line = next(each for each in shown.splitlines() if "onnx" in each and "77" in each)
    cells = "text student onnx 1.23M 4.9 77 3.00 2.00 (4.00) 20.0 50.0 (100) 16.0 55 0.9877 87.5%"
    assert " ".join(line.split()) == cells
    assert "text student, onnx-int8: not measured: OSError: no" in shown
    assert "64 made-up inputs" in shown


def test_the_chart_has_a_bar_for_each_variant_and_length(report: dict[str, Any], tmp_path: Path) -> None:
    bars = chart.bars(report["variants"], "text")
    assert [row[2] for row in bars] == [
        "teacher, eager, 77 tokens",
        "teacher, eager, 16 tokens",
        "student, eager, 77 tokens",
        "student, onnx, 77 tokens",
        "student, onnx, 9 tokens",
    ]
    assert [row[3] for row in bars][2:] == ["10 ms · 4.0×", "2 ms · 20.0×", "1 ms"]
    pytest.importorskip("matplotlib")
    chart.draw(report, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        colours = {tuple(colour) for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {tuple(bytes.fromhex(each[1:])) for each in chart.COLOURS.values()} <= colours
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]
