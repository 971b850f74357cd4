"""Zero-shot classes by teacher and students, in all pairings, and what there is to say of them.

Shapes: N photos, C classes, T templates.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn

from clip_distill.evaluation.classes import Classes
from clip_distill.evaluation.compare import Device, embedded, readable
from clip_distill.evaluation.loading import require_taught_by
from clip_distill.evaluation.retrieval import encode_images
from clip_distill.evaluation.zero_shot import class_embeddings, class_scores, measured
from clip_distill.system.report import Report
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import Tower, TowerSpec

SHOWN = 5  # classes that changed most


def compare_classes(
    teacher: str,
    classes: Classes,
    texts: list[str],
    students: dict[Tower, tuple[str, TowerSpec, nn.Module, int]],
    how: Device,
    skipped: Counter[str],
) -> dict[str, Any]:
    """Scores of each pairing of towers, teacher × teacher first.

    Args:
        teacher: Its name.
        classes: Photos [N], names [C], labels.
        texts: [C · T], class by class.
        students: Tower → name, spec, module, parameters.
        how: Where they run.
        skipped: Counts the photos that can't be read, by reason.

    Raises:
        InvalidValue: A student is of another teacher.
    """
    spec, module = load_teacher(teacher, "image")
    for name, own, _, _ in students.values():
        require_taught_by(f"student {name}", own, spec.teacher)
    found, ids = encode_images(
        spec, module.to(how.device), classes.images, how.device, how.batch_size, how.workers, skipped
    )
    images, labels = {"teacher": found}, classes.labels
    if len(ids) < len(classes.images) and labels is not None:
        there = pc.is_in(classes.images.column("id"), value_set=pa.array(ids, pa.large_string()))
        labels = labels[torch.tensor(there.to_pylist())]
    photos = readable(classes.images, ids)
    count = len(classes.names)
    names = {"teacher": class_embeddings(embedded(*load_teacher(teacher, "text"), texts, how), count)}
    if "image" in students:
        images["student"] = embedded(*students["image"][1:3], photos, how)
    if "text" in students:
        names["student"] = class_embeddings(embedded(*students["text"][1:3], texts, how), count)
    scores = {(i, t): class_scores(images[i], names[t]) for i in images for t in names}
    whole = scores["teacher", "teacher"]
    pairings = [
        {"image": i, "text": t, **measured(each, whole, labels, classes.several)} for (i, t), each in scores.items()
    ]
    return {
        "teacher": teacher,
        "students": {tower: name for tower, (name, *_) in students.items()},
        "labelled": None if labels is None else "several" if classes.several else "single",
        "count": len(photos),
        "skipped_images": dict(skipped),
        "classes": classes.names,
        "pairings": pairings,
    }


class ZeroShotReport(Report):
    """What `zero_shot` found: `print(report)` is the tables, `report.to_dict()` has every number."""

    @property
    def pairings(self) -> list[dict[str, Any]]:
        """A record for each pairing of towers: `image` and `text` (whose towers), `agreement`, accuracies, all in
        per cent; teacher with teacher first."""
        return self.numbers["pairings"]

    def show(self, console: Console | None = None) -> None:
        console = console or Console()
        numbers = self.numbers
        console.print(
            f"\n{numbers['count']:,} photos, {len(numbers['classes'])} classes, templates: {numbers['templates']}",
            highlight=False,
        )
        for reason, count in numbers["skipped_images"].items():
            console.print(f"  skipped {count} photos: {reason}", highlight=False)
        if numbers["labelled"] is None:
            console.print("  no labels: how often the teacher's class is found, too", highlight=False)
        console.print(self._pairings())
        last = self.pairings[-1]
        if numbers["labelled"] is not None and len(self.pairings) > 1:
            console.print(self._classes(last))
        for right, found, photos in last.get("confused", [])[:SHOWN]:
            names = numbers["classes"]
            console.print(f"  {names[right]} taken for {names[found]}: {photos} photos", highlight=False)
        if self.saved is not None:
            console.print(f"every number: {self.saved}", highlight=False, soft_wrap=True)

    def _pairings(self) -> Table:
        table = Table(box=SIMPLE, padding=0)
        for name in ("image\ntower", "text\ntower"):
            table.add_column(name, min_width=7)
        columns = {
            "top1": "top-1\n%",
            "top5": "top-5\n%",
            "mean_per_class": "per class\n%",
            "mean_average_precision": "mAP\n%",
            "agreement": "same as the\nteacher %",
        }
        there = [name for name in columns if name in self.pairings[0]]
        for name in there:
            table.add_column(columns[name], justify="right")
        for pair in self.pairings:
            table.add_row(pair["image"], pair["text"], *(f"{pair[name]:.1f}" for name in there))
        return table

    def _classes(self, last: dict[str, Any]) -> Table:
        """The classes on which a pairing and the teacher differ most."""
        whole = self.pairings[0]
        rows = [
            (name, before, after)
            for name, before, after in zip(self.numbers["classes"], whole["per_class"], last["per_class"], strict=True)
            if before is not None
        ]
        rows.sort(key=lambda row: row[2] - row[1])
        table = Table("class", box=SIMPLE, padding=0, title="classes that lost and gained most, %")
        for name in ("teacher", f"{last['image']} + {last['text']}"):
            table.add_column(name, justify="right")
        ends = [*rows[:SHOWN], *rows[SHOWN:][-SHOWN:]]
        for name, before, after in ends:
            if before != after:
                table.add_row(name, f"{before:.1f}", f"{after:.1f}")
        return table
