"""What `recipes.py` measured: a Markdown table, a JSON file and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import ORIGINAL, OURS

from clip_distill.system.files import write_json

RECALLS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "mean_recall")
Record = dict[str, Any]


def report(records: list[Record], out: Path) -> None:
    """Write OUT.json, OUT.md and, if matplotlib is there, OUT.png; print the table."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record["name"], []).append(record)
    table = markdown(runs)
    print(f"\n{table}")
    write_json(out.with_suffix(".json"), {"runs": records, "summary": {name: summary(runs[name]) for name in runs}})
    out.with_suffix(".md").write_text(table, encoding="utf-8")
    try:
        draw(runs, out.with_suffix(".png"))
    except ImportError as error:
        print(f"no picture ({error}): pip install 'clip-distill[charts]', then run again with --report")


def summary(runs: list[Record]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of every recall of the last weights, and % of the teacher's."""
    teacher, ends = runs[0]["teacher"], [run["curve"][-1] for run in runs]
    found: dict[str, Any] = {"seeds": len(runs), "lr": runs[-1]["lr"]}
    for name in (*RECALLS, "cosine"):
        values = [end[name] for end in ends]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": statistics.mean(values), "spread": spread, "values": values}
        if teacher.get(name):
            found[name]["kept"] = 100 * found[name]["mean"] / teacher[name]
    return found


def mean_curve(runs: list[Record], name: str = "mean_recall") -> list[tuple[float, float, float, float]]:
    """(seconds, mean, lowest, highest) over seeds at each point."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [
        (
            statistics.mean(point["seconds"] for point in at),
            statistics.mean(values := [point[name] for point in at]),
            min(values),
            max(values),
        )
        for at in points
    ]


def reached(runs: dict[str, list[Record]]) -> dict[str, str]:
    """When each recipe was first validated at the original's best mean recall, and as a share of its seconds."""
    if ORIGINAL not in runs:
        return {}
    seconds, goal, *_ = max(mean_curve(runs[ORIGINAL]), key=lambda point: point[1])
    found = {}
    for name, theirs in runs.items():
        first = next((point[0] for point in mean_curve(theirs) if point[1] >= goal), None)
        found[name] = "–" if first is None else f"{first:.0f} s, 1/{seconds / max(first, 1e-9):.0f}"
    return found


def markdown(runs: dict[str, list[Record]]) -> str:
    """One table: the best mean recall first, the teacher at the end."""
    some = next(iter(runs.values()))[0]
    summaries = {name: summary(theirs) for name, theirs in runs.items()}
    order = sorted(runs, key=lambda name: -summaries[name]["mean_recall"]["mean"])
    times = reached(runs)
    heads = ["recipe", "first weights", "learning rate", "steps", "seconds", "t→i R@1", "R@5", "R@10", "i→t R@1"]
    heads += ["R@5", "R@10", "mean recall", "t→i R@10 kept", "at the original's best after"]
    lines = [
        f"{some['tower']} student, {some['parameters'] / 1e6:.2f}M parameters; {some['budget']:g} s of training; "
        "recall in per cent with the teacher's other tower, mean ± standard deviation over seeds",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- | --- |{' ---: |' * (len(heads) - 2)}",
    ]
    for name in order:
        theirs, found = runs[name], summaries[name]
        cells = [name, theirs[0]["init"], f"{found['lr']:g}", over(theirs, "steps", "{:,.0f}".format)]
        cells.append(over(theirs, "seconds", "{:.0f}".format))
        cells += [spread(found[key]) for key in RECALLS]
        cells += [f"{found['t2i_r10']['kept']:.0f}%", times.get(name, "–")]
        lines.append(f"| {' | '.join(cells)} |")
    teacher = [f"{some['teacher'][key]:.1f}" for key in RECALLS]
    lines.append(f"| {' | '.join(['the teacher', '', '', '', '', *teacher, '100%', ''])} |")
    return "\n".join(lines) + "\n"


def spread(found: dict[str, Any]) -> str:
    """Mean ± standard deviation; of a single seed the value alone."""
    more = f" ± {found['spread']:.1f}" if len(found["values"]) > 1 else ""
    return f"{found['mean']:.1f}{more}"


def over(runs: list[Record], key: str, write: Callable[[float], str]) -> str:
    """Lowest and highest over seeds, or the one value."""
    low, high = (write(pick(run[key] for run in runs)) for pick in (min, max))
    return low if low == high else f"{low}–{high}"


def draw(runs: dict[str, list[Record]], path: Path) -> None:
    """Text→image R@10 over seconds of training: a line a recipe, the band from the lowest to the highest seed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(runs):
        seconds, means, lows, highs = zip(*mean_curve(runs[name], "t2i_r10"), strict=True)
        colour = "black" if name == OURS else colormaps["tab10"](number % 10)
        axes.plot(seconds, means, "o-", color=colour, label=name, lw=2.5 if name == OURS else 1.5, ms=4)
        axes.fill_between(seconds, lows, highs, color=colour, alpha=0.15, lw=0)
    some = next(iter(runs.values()))[0]
    axes.axhline(some["teacher"]["t2i_r10"], color="grey", ls="--", label="the teacher")
    axes.set(xlabel="seconds of training", ylabel="text→image R@10, %", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"{some['tower']} student, {some['parameters'] / 1e6:.2f}M parameters")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    aside = path.with_name(f".{path.name}.tmp")
    figure.savefig(aside, format="png", dpi=150)
    aside.replace(path)
