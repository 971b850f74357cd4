"""Findings as one HTML page that needs nothing else: pictures, charts and style are within.

Shapes: N photos, N_t captions.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from clip_distill.evaluation.retrieval import Benchmark
from clip_distill.pixels.photos import read_image
from clip_distill.reporting import charts
from clip_distill.reporting.words import WORDS, verdict
from clip_distill.system.files import write_bytes

THUMB = 112  # pixels
MEASURES = {
    "t2i_r1": "text→image R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "i2t_r1": "image→text R@1", "i2t_r5": "R@5", "i2t_r10": "R@10",
}  # fmt: skip
CHINESE = {"text→image": "文→图", "image→text": "图→文"}


def write_page(path: Path, findings: dict[str, Any], benchmark: Benchmark, language: str) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The file.
        findings: `runs`, `both` (None where there are not both), `heat` of each run, and what they share.
        benchmark: Its photos and captions, which findings name by their rows.
        language: en or zh.
    """
    words, photos, captions = WORDS[language], benchmark.images.to_pylist(), benchmark.captions
    thumbs: dict[int, str] = {}

    def thumb(row: int) -> str:
        if row not in thumbs:
            thumbs[row] = small(photos[row])
        return thumbs[row]

    names = {key: title(key, language) for key in MEASURES}
    sections = [section(run["tower"], run, words, names, language) for run in findings["runs"]]
    if findings["both"]:
        sections.append(section("both", findings["both"], words, names, language))
    several = charts.recall_by_size(findings["runs"], words) if len(findings["runs"]) > 1 else ""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        importlib.resources.files("clip_distill.reporting").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    shown = {"sections": sections, "several": several, "shared": findings, "thumb": thumb, "captions": captions}
    shown["small"] = small
    page = template.render(words=words, language=language, **shown)
    write_bytes(path, page.encode())


def small(place: dict[str, Any]) -> str:
    """A photo as a small JPEG within the page; its place is one of `corpus.layout`."""
    image = read_image(place["path"], place["offset"], place["size"])
    image.thumbnail((THUMB, THUMB))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def title(measure: str, language: str) -> str:
    text = MEASURES[measure]
    for english, chinese in CHINESE.items() if language == "zh" else ():
        text = text.replace(english, chinese)
    return text


def section(
    kind: str, found: dict[str, Any], words: dict[str, str], names: dict[str, str], language: str
) -> dict[str, Any]:
    """What the template shows of one student, or of both."""
    rows = [(names.get(key, words["mean_recall"]), value) for key, value in found["recall"].items()]
    shown = {"kind": kind, "found": found, "verdict": verdict(kind, found, language), "rows": rows}
    shown["bars"] = charts.recall_bars(found["recall"], names, words)
    shown["cosines"] = charts.cosine_bars(found["cosines"], words) if "cosines" in found else ""
    shown["curves"] = [charts.curve(name, points, words) for name, points in found.get("curves", {}).items()]
    shown["heat"] = [
        charts.heat_map(found["heat"][who], words[who], words) for who in ("teacher", "student") if "heat" in found
    ]
    shown["recipe"] = yaml.safe_dump(found["recipe"], sort_keys=False, allow_unicode=True) if "recipe" in found else ""
    return shown
