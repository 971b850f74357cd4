"""What `benchmark` found, for people: one table. The JSON beside it has every number."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from clip_distill.system.report import Report

MIN_WIDTH = 118  # in a narrower console the table would lose digits


def machine() -> dict[str, Any]:
    """What the figures hold for, as plain data; the load is that before measuring began."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, str | None] = {}
    for package in ("torch", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": found,
    }


def add_speedups(records: list[dict[str, Any]]) -> None:
    """Give each case its `speedup` over the teacher in torch eager at the same batch and length, and its quartiles.

    It is the median, turn by turn, of the teacher's time over its own. None where no teacher was measured, or not at
    this length.
    """
    reference = {
        (record["tower"], case["batch"], case["tokens"]): np.array(case["turn_seconds"])
        for record in records
        if record["role"] == "teacher" and record["runtime"] == "eager"
        for case in record["cases"]
    }
    for record in records:
        for case in record.get("cases", []):
            whole = reference.get((record["tower"], case["batch"], case["tokens"]))
            case["speedup"] = case["speedup_quartiles"] = None
            if whole is not None:
                own = np.array(case["turn_seconds"])
                both = min(len(whole), len(own))  # a slow one has fewer turns
                low, middle, high = np.quantile(whole[:both] / own[:both], (0.25, 0.5, 0.75)).tolist()
                case["speedup"], case["speedup_quartiles"] = middle, [low, high]


@dataclass(frozen=True)
class BenchmarkReport(Report):
    """What `benchmark` found: `print(report)` is the table, `report.to_dict()` has every number.

    Args:
        chart: Where the picture is, if one was drawn.
    """

    chart: str | None = None

    def show(self, console: Console | None = None) -> None:
        console = console or Console()
        show(self.numbers, console)
        for what, place in (("every number", self.saved), ("the chart", self.chart)):
            if place is not None:
                console.print(f"{what}: {place}", highlight=False, soft_wrap=True)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table."""
    console.width = max(console.width, MIN_WIDTH)
    how, settings = report["machine"], report["settings"]
    cpu = f"{how['cores']} cores of {how['cpu']}, load average {how['load_average']}"
    console.print(f"\n{cpu}; {settings['threads']} threads, {settings['device']}", highlight=False)
    console.print("  ms: median (p90) of a whole batch; ×: how much faster than the teacher in eager", highlight=False)
    console.print("  MB in use: peak, less the idle interpreter with its runtime", highlight=False)
    kinds = {"real": "validation inputs", "random": "made-up inputs, which flatter int8: give --data"}
    for line in sorted({f"{each['rows']} {kinds[each['inputs']]}" for each in report["variants"] if "rows" in each}):
        console.print(
            f"  cosine, near 10 (nearest 10 shared): against eager of the same tower, {line}", highlight=False
        )
    console.print(table(report["variants"], settings["batch_sizes"]))
    for record in report["variants"]:
        if "failed" in record:
            console.print(f"{title(record)}, {record['runtime']}: not measured: {record['failed']}", highlight=False)


def title(record: dict[str, Any]) -> str:
    return f"{record['tower']} {record['role']}"


def table(records: list[dict[str, Any]], batch_sizes: list[int]) -> Table:
    """A row per tower, runtime and length of text."""
    result = Table(box=SIMPLE, padding=0)
    for name in ("tower", "runtime"):
        result.add_column(name, no_wrap=True)
    for name in ("parameters", "file\nMB", "tokens", "GFLOPs"):
        result.add_column(name, justify="right", no_wrap=True)
    for size in batch_sizes:
        result.add_column(f"batch {size}\nms", justify="right", no_wrap=True)
        result.add_column("\n×", justify="right", no_wrap=True)
    for name in ("in use\nMB", "cosine", "near\n10"):
        result.add_column(name, justify="right", no_wrap=True)
    for record in (each for each in records if "cases" in each):
        for number, tokens in enumerate(dict.fromkeys(case["tokens"] for case in record["cases"])):
            cases = [case for case in record["cases"] if case["tokens"] == tokens]
            first, last = _variant_cells(record) if number == 0 else ([""] * 4, [""] * 3)
            middle = ["" if tokens is None else str(tokens), _gflops(cases)]
            result.add_row(*first, *middle, *(cell for case in cases for cell in _case_cells(case)), *last)
        if record["runtime"] == records[-1]["runtime"]:
            result.add_section()
    return result


def _variant_cells(record: dict[str, Any]) -> tuple[list[str], list[str]]:
    first = [
        title(record),
        record["runtime"],
        f"{record['parameters'] / 1e6:.2f}M",
        f"{record['file_bytes'] / 1e6:.1f}",
    ]
    shared = record["neighbour_overlap"]
    near = "–" if shared is None else f"{100 * shared:.1f}%"
    return first, [f"{record['peak_bytes'] / 1e6:.0f}", f"{record['cosine']:.4f}", near]


def _case_cells(case: dict[str, Any]) -> list[str]:
    median, p90 = (_three_digits(1000 * case[key]) for key in ("median_seconds", "p90_seconds"))
    speedup = case["speedup"]
    return [f"{median} ({p90})", "–" if speedup is None else f"{speedup:.1f}"]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _gflops(cases: list[dict[str, Any]]) -> str:
    """Of one input: those of the smallest batch, divided."""
    case = min(cases, key=lambda each: each["batch"])
    return f"{case['flops'] / case['batch'] / 1e9:.2f}"
