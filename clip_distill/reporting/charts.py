"""Charts as SVG text, drawn by matplotlib; their colours follow the page's by CSS variables."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from clip_distill.system.errors import MissingPackage

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingPackage(f"a report needs {error.name}; install it with: pip install 'clip-distill[charts]'") from error

INK, TEACHER, STUDENT = "#123456", "#234567", "#345678"  # stand for the page's colours
VARIABLES = {INK: "var(--ink)", TEACHER: "var(--teacher)", STUDENT: "var(--student)"}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "clip-distill",  # the same bytes for the same data
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def drawn(title: str, width: float, height: float, draw: Callable[[Any], None]) -> str:
    """An `<svg>` element with a title for those who can't see it.

    Args:
        title: What it shows.
        width: In inches.
        height: In inches.
        draw: Draws on the one axes.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        file = io.StringIO()
        with warnings.catch_warnings():  # text stays text: the reader's fonts, not matplotlib's, must have the letters
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def recall_bars(recall: dict[str, Any], names: dict[str, str], words: dict[str, str]) -> str:
    """Teacher and student, a pair of bars for each measure, with intervals."""

    def draw(axis: Any) -> None:
        for shift, who, colour in ((-0.2, "teacher", TEACHER), (0.2, "student", STUDENT)):
            values = [recall[name][who] for name in names]
            places = [place + shift for place in range(len(names))]
            errors = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
            axis.bar(places, [v for v, _, _ in values], 0.38, color=colour, label=words[who])
            axis.errorbar(places, [v for v, _, _ in values], errors, fmt="none", ecolor=INK, capsize=2, lw=1)
        axis.set_xticks(range(len(names)), list(names.values()))
        axis.set_ylabel("%")
        axis.legend(frameon=False, loc="upper left", ncols=2)
        axis.margins(y=0.18)

    return drawn(words["recalls"], 7.5, 2.8, draw)


def cosine_bars(cosines: dict[str, list[float]], words: dict[str, str]) -> str:
    """How near each embedding is to the teacher's."""

    def draw(axis: Any) -> None:
        edges = cosines["edges"]
        axis.bar(edges[:-1], cosines["per_cent"], edges[1] - edges[0], align="edge", color=STUDENT)
        axis.set_xlabel(words["cosine"])
        axis.set_ylabel("%")

    return drawn(words["cosines"], 3.6, 2.4, draw)


def curve(title: str, points: Sequence[Sequence[float]], words: dict[str, str]) -> str:
    """A value over the steps of a training."""

    def draw(axis: Any) -> None:
        axis.plot([x for x, _ in points], [y for _, y in points], color=STUDENT, lw=1.3)
        axis.set_xlabel(words["step"])
        axis.set_title(words.get(title, title), fontsize=9)

    return drawn(words.get(title, title), 2.7, 2.0, draw)


def heat_map(cells: Sequence[Sequence[float]], title: str, words: dict[str, str]) -> str:
    """Cosines of captions (rows) with photos (columns), rows and columns of one photo each."""

    def draw(axis: Any) -> None:
        axis.imshow(cells, cmap="viridis", aspect="equal")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(words["photos"])
        axis.set_ylabel(words["captions"])
        axis.set_title(title, fontsize=9)

    return drawn(f"{words['similarities']}: {title}", 2.6, 2.6, draw)


def recall_by_size(rows: Sequence[dict[str, Any]], words: dict[str, str]) -> str:
    """A point a run: mean recall by parameters, the teacher's beside them."""

    def draw(axis: Any) -> None:
        for row in rows:
            value, low, high = row["recall"]["mean_recall"]["student"]
            size, spread = row["parameters"] / 1e6, [[value - low], [high - value]]
            axis.errorbar(size, value, spread, fmt="o", color=STUDENT, capsize=2)
            axis.annotate(row["short"], (size, value), (4, 4), textcoords="offset points")
            teacher = row["recall"]["mean_recall"]["teacher"][0]
            axis.plot(row["teacher_parameters"] / 1e6, teacher, "s", color=TEACHER)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}M")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(words["parameters"])
        axis.set_ylabel(words["mean_recall"])
        axis.margins(0.15)

    return drawn(words["by_size"], 6.0, 3.0, draw)


def score_curves(found: dict[str, Any]) -> str:
    """Of each stage of a drop-in check, how many queries above a score find their photo, and how many are answered."""

    def draw(axis: Any) -> None:
        for (name, each), colour in zip(found.items(), (TEACHER, STUDENT, INK), strict=False):
            scores, precision, answered = zip(*each["curve"], strict=True)
            axis.plot(scores, precision, color=colour, label=f"{name}: photo on the first page")
            axis.plot(scores, answered, color=colour, ls=":", label=f"{name}: answered")
            axis.axvline(each["threshold"], color=colour, lw=0.8, ls="--")
        axis.set_xlabel("cosine of the first answer, at least")
        axis.set_ylabel("%")
        axis.legend(frameon=False, fontsize=7)

    return drawn("Queries that find their photo, and queries that are answered, by score", 6.0, 3.4, draw)


def standalone(svg: str) -> str:
    """An inline `<svg>` as a file of its own, with the page's colours for light and dark."""
    light = "--ink:#1c2127;--teacher:#8a95a1;--student:#0b6e5a"
    dark = "--ink:#e8eaed;--teacher:#7d8894;--student:#5cc8ae"
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    head, rest = svg.split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style}{rest}'
