"""The table's times as bars."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clip_distill.benchmarking.report import title
from clip_distill.system.files import aside

COLOURS = {"teacher": "#9aa5b1", "student": "#2f6f9f"}
INSTALL = "pip install 'clip-distill[charts]'"


def available() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: a panel per tower, a bar per variant, its time at the smallest batch on a logarithmic axis.

    Args:
        report: Of `clip_distill.verbs.benchmark.benchmark`.
        path: Where it goes, `*.png`; replaced whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    panels = {tower: bars(report["variants"], tower) for tower in ("image", "text")}
    panels = {tower: rows for tower, rows in panels.items() if rows}
    heights = [len(rows) for rows in panels.values()]
    figure = Figure(figsize=(8, 1.2 * len(panels) + 0.28 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    batch = min(report["settings"]["batch_sizes"])
    for (tower, rows), axis in zip(panels.items(), axes, strict=True):
        places = range(len(rows), 0, -1)
        drawn = axis.barh(places, [row[1] for row in rows], color=[COLOURS[row[0]] for row in rows])
        axis.set_yticks(places, [row[2] for row in rows])
        axis.bar_label(drawn, [row[3] for row in rows], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.25, y=0.02)
        axis.set_title(f"{tower} tower, batch {batch}, {report['settings']['threads']} threads", fontsize=10)
        axis.set_xlabel("milliseconds (median), logarithmic")
        axis.spines[["top", "right"]].set_visible(False)
    with aside(path) as beside:
        figure.savefig(beside, dpi=150, format="png")


def bars(records: list[dict[str, Any]], tower: str) -> list[tuple[str, float, str, str]]:
    """Role, milliseconds, name and value of each bar of a tower: its variants at the smallest batch."""
    rows = []
    for record in (each for each in records if each["tower"] == tower and "cases" in each):
        smallest = min(case["batch"] for case in record["cases"])
        for case in (each for each in record["cases"] if each["batch"] == smallest):
            length = "" if case["tokens"] is None else f", {case['tokens']} tokens"
            milliseconds = 1000 * case["median_seconds"]
            times = "" if case["speedup"] is None else f" · {case['speedup']:.1f}×"
            name = f"{title(record).removeprefix(tower).strip()}, {record['runtime']}{length}"
            rows.append((record["role"], milliseconds, name, f"{milliseconds:.3g} ms{times}"))
    return rows
