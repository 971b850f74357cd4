"""What `evaluate` found, for people: two tables and what was left out. The JSON beside them has every number."""

from __future__ import annotations

from typing import Any, Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from clip_distill.system.errors import InvalidValue
from clip_distill.system.report import Report

Side = Literal["teacher", "student"]
MIN_WIDTH = 80  # in a narrower console the tables would lose digits


class EvaluationReport(Report):
    """What `evaluate` found: `print(report)` is the table, `report.to_dict()` has every number."""

    @property
    def pairings(self) -> list[dict[str, Any]]:
        """A record for each pairing of towers: `image` and `text` (whose towers), recalls in per cent, `kept`."""
        return self.numbers["pairings"]

    def pairing(self, image: Side, text: Side) -> dict[str, Any]:
        """The record of one pairing.

        Args:
            image: Whose image tower.
            text: Whose text tower.

        Raises:
            InvalidValue: It was not measured.
        """
        for pair in self.pairings:
            if (pair["image"], pair["text"]) == (image, text):
                return pair
        there = ", ".join(f"{pair['image']} and {pair['text']}" for pair in self.pairings)
        raise InvalidValue(f"expected one of the pairings that were measured ({there}), found {image} and {text}")

    @property
    def students(self) -> dict[str, dict[str, Any]]:
        """Tower → the student's name, parameters, mean cosine to the teacher, share of neighbours, and match."""
        return self.numbers["students"]

    def show(self, console: Console | None = None) -> None:
        show(self.numbers, console or Console())
        if elsewhere := self.numbers.get("elsewhere"):
            from clip_distill.evaluation.elsewhere import elsewhere_table, warnings_of

            (console or Console()).print(elsewhere_table(elsewhere))
            for line in warnings_of(elsewhere):
                (console or Console()).print(line, highlight=False, soft_wrap=True)
        if self.saved is not None:
            (console or Console()).print(f"every number: {self.saved}", highlight=False, soft_wrap=True)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the two tables."""
    console.width = max(console.width, MIN_WIDTH)
    data = report["data"]
    console.print(f"\n{data['images']:,} photos, {data['captions']:,} captions ({data['split']})", highlight=False)
    for line in notes(report):
        console.print(f"  {line}", highlight=False)
    if report["pairings"]:
        console.print("  t→i: text→image; i→t: image→text; recall in per cent; MedR: median rank", highlight=False)
        console.print(pairings_table(report), towers_table(report), sep="")
    else:
        console.print("  no photos with captions: compared with the teacher's own embeddings", highlight=False)
        console.print(towers_table(report))


def _table(*left: str) -> Table:
    table = Table(box=SIMPLE, padding=0)
    for name in left:
        table.add_column(name, min_width=7, overflow="fold")
    return table


def pairings_table(report: dict[str, Any]) -> Table:
    """A row per pairing: recall in per cent both ways, median rank, mean recall and its share of the teacher's."""
    table = _table("image\ntower", "text\ntower")
    for direction in ("t→i", "i→t"):
        for name in ("R@1", "R@5", "R@10", "MedR"):
            table.add_column(f"{direction}\n{name}", justify="right", no_wrap=True)
    table.add_column("mean\nrecall", justify="right", no_wrap=True)
    table.add_column("\nkept", justify="right", no_wrap=True)
    for pair in report["pairings"]:
        cells = [pair["image"], pair["text"]]
        for way in ("t2i", "i2t"):
            cells += [f"{pair[f'{way}_{name}']:.1f}" for name in ("r1", "r5", "r10")]
            cells.append(f"{pair[f'{way}_median_rank']:g}")
        kept = pair["kept"]["mean_recall"]
        cells += [f"{pair['mean_recall']:.1f}", "–" if kept is None else f"{kept:.0f}%"]
        table.add_row(*cells)
    return table


def towers_table(report: dict[str, Any]) -> Table:
    """A row per tower: parameters, and how close a student's embeddings are to the teacher's."""
    table = _table("tower", "name")
    for name in ("parameters", "cosine to\nthe teacher", "nearest 10\nshared", "match\nR@1", "\nR@10"):
        table.add_column(name, justify="right")
    for tower in ("image", "text"):
        parameters = report["teacher"]["parameters"][tower]
        table.add_row(f"teacher, {tower}", report["teacher"]["name"], millions(parameters))
    for tower, student in report["students"].items():
        cosine, overlap = student["mean_cosine"], student["neighbour_overlap"]
        closeness = [
            "–" if cosine is None else f"{cosine:.4f}",
            "–" if overlap is None else f"{100 * overlap:.0f}%",
        ]
        if student["match"] is not None:
            closeness += [f"{student['match'][name]:.1f}" for name in ("match_r1", "match_r10")]
        table.add_row(f"student, {tower}", student["name"], millions(student["parameters"]), *closeness)
    return table


def millions(parameters: int | None) -> str:
    return "–" if parameters is None else f"{parameters / 1e6:.2f}M"


def notes(report: dict[str, Any]) -> list[str]:
    """What does not count, and why."""
    data = report["data"]
    lines = [f"skipped {count} photos: {reason}" for reason, count in data["skipped_images"].items()]
    if report["captions_unknown_to_teacher"]:
        lines.append("the store has none of these captions, so the teacher's text tower is left out")
    if data["dropped_captions"]:
        lines.append(f"{data['dropped_captions']} captions don't count: they have no photo, or theirs was skipped")
    if data["images_without_caption"]:
        lines.append(f"{data['images_without_caption']} photos have no caption: they are candidates, not queries")
    return lines
