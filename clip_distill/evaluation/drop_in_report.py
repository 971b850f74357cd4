"""Teacher and students before an index that the teacher made: measured, judged and told.

Shapes: Q queries, N photos, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.corpus.layout import IMAGES_SCHEMA, Sources, scan
from clip_distill.corpus.pairs import find_photos
from clip_distill.evaluation.compare import Device, embedded
from clip_distill.evaluation.drop_in import calibrate, first_answers, first_scores, half, recalls, same_answers
from clip_distill.evaluation.loading import require_taught_by
from clip_distill.store.foreign import Index
from clip_distill.system.errors import InvalidValue
from clip_distill.system.report import Report
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import Tower, TowerSpec

Students = dict[Tower, tuple[str, TowerSpec, nn.Module, int]]
STATUS = {"yes": 0, "re-index first": 3, "no": 4}  # 1 and 2 are errors


@dataclass(frozen=True)
class Queries:
    """What is asked.

    Args:
        texts: Q.
        right: int64 [Q], the row of each one's photo in the index; None where nobody knows.
        dropped: How many have a photo that the index does not.
    """

    texts: list[str]
    right: Tensor | None
    dropped: int

    @staticmethod
    def of(rows: list[tuple[str, str | None]], names: list[str]) -> Queries:
        """Look up photos by name in an index: those whose photo is known count, else all of them.

        Raises:
            InvalidValue: There are no queries, or none of their photos is in the index.
        """
        named = [(text, name) for text, name in rows if name is not None]
        if not rows:
            raise InvalidValue("--queries: expected texts, found none")
        if not named:
            return Queries(list(dict.fromkeys(text for text, _ in rows)), None, 0)
        known = pa.array(names, pa.large_string())
        found = find_photos(pa.array([name for _, name in named], pa.large_string()), known)
        row_of = {name: row for row, name in enumerate(names)}
        both = [(text, row_of[id]) for (text, _), id in zip(named, found.to_pylist(), strict=True) if id is not None]
        if not both:
            raise InvalidValue(
                f"--queries: expected photos of the index, such as {names[0]!r}, found none of {len(named)}, such as "
                f"{named[0][1]!r}"
            )
        return Queries([text for text, _ in both], torch.tensor([row for _, row in both]), len(rows) - len(both))


def photos_of(index: Index, folder: str | None) -> pa.Table:
    """The files of an index's photos, in its order: a table of `corpus.layout`.

    Args:
        index: Its names are paths, or names of photos in `folder`.
        folder: Where the photos lie.

    Raises:
        InvalidValue: Some are not found.
    """
    if folder is None:
        lost = [name for name in index.names if not Path(name).is_file()]
        rows = pa.table({"id": index.names, "path": index.names}).cast(pa.schema(list(IMAGES_SCHEMA)[:2]))
        ends = pa.array(np.full(len(rows), -1))
        table = rows.append_column("offset", ends).append_column("size", ends)
    else:
        images = scan(None, Sources(train_images=[folder], recursive=True)).train.require_images()
        ids = images.column("id").combine_chunks()
        found = find_photos(pa.array(index.names, pa.large_string()), ids)
        lost = [name for name, id in zip(index.names, found.to_pylist(), strict=True) if id is None]
        row_of = {id: row for row, id in enumerate(ids.to_pylist())}
        table = images.take(pa.array([row_of[id] for id in found.to_pylist() if id is not None], pa.int64()))
    if lost:
        raise InvalidValue(
            f"expected the photos of the index, which an image student must see, found {len(lost)} of "
            f"{len(index.names)} missing, such as {lost[0]!r}: name their folder, --photos DIR"
        )
    return table


def compare_drop_in(
    index: Index, queries: Queries, teacher: str, students: Students, photos: pa.Table | None, how: Device
) -> dict[str, Any]:
    """What queries find before, after, and in an index that the student made itself.

    An image student's photos join those that are there already: every second photo of a mixed index is the student's.

    Args:
        index: N photos.
        queries: Q texts.
        teacher: The name of what made the index.
        students: Tower → name, spec, module, parameters.
        photos: Of the index, for an image student.
        how: Where towers run.

    Raises:
        InvalidValue: A student is of another teacher, or of another width than the index.
    """
    spec, module = load_teacher(teacher, "text")
    for name, own, _, _ in students.values():
        require_taught_by(f"student {name}", own, index.teacher or spec.teacher)
    if spec.embed_dim != index.embeddings.shape[1]:
        raise InvalidValue(
            f"expected an index of {teacher}, {spec.embed_dim} numbers a photo, found {index.embeddings.shape[1]}"
        )
    old, asked = torch.from_numpy(index.embeddings), unit(embedded(spec, module, queries.texts, how))
    texts = unit(embedded(*students["text"][1:3], queries.texts, how)) if "text" in students else asked
    mixed, own_index = old, None
    if "image" in students and photos is not None:
        own_index = unit(embedded(*students["image"][1:3], photos, how))
        mixed = torch.where(torch.from_numpy(half(index.names))[:, None], own_index, old)
    count = min(50, len(old))
    stages = {"before": (asked, old), "after": (texts, mixed)}
    stages |= {} if own_index is None else {"re-indexed": (texts, own_index)}
    answers = {name: first_answers(*stage, count) for name, stage in stages.items()}
    found: dict[str, Any] = {}
    for name, stage in stages.items():
        scores = answers[name][0][:, 0]
        found[name] = {
            "same": same_answers(answers["before"][1], answers[name][1]),
            "first_score": {"mean": float(scores.mean()), "spread": float(scores.std(correction=0))},
        }
        if queries.right is not None:
            found[name]["recall"] = recalls(*stage, queries.right)
    return {
        "index": {"kind": index.kind, "photos": len(old), "dim": old.shape[1]},
        "queries": {"count": len(texts), "known": queries.right is not None, "dropped": queries.dropped},
        "teacher": teacher,
        "students": {tower: name for tower, (name, *_) in students.items()},
        "stages": found,
        "embeddings": stages,
    }


def unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=1)


def thresholds(stages: dict[str, tuple[Tensor, Tensor]], right: Tensor | None, precision: float) -> dict[str, Any]:
    """The score from which answers are worth showing, of each stage; nothing where no right answer is known."""
    if right is None or len(next(iter(stages.values()))[1]) < 2:
        return {}
    return {name: calibrate(*first_scores(*stage, right), precision) for name, stage in stages.items()}


def judge(stages: dict[str, Any], keep: float, same: float) -> tuple[str, str]:
    """yes, no, or re-index first; and why.

    Args:
        stages: `before`, `after` and perhaps `re-indexed`, as `compare_drop_in` gives them.
        keep: Of the recall of known queries, in per cent.
        same: Of the first ten answers (of all, in a smaller index), in per cent, where no right answers are known.
    """

    def kept(name: str) -> float:
        if "recall" not in stages[name]:
            shares = stages[name]["same"]
            return float(shares.get("first_10", list(shares.values())[-1]))
        whole = stages["before"]["recall"]["mean"]
        return 100 * float(stages[name]["recall"]["mean"]) / whole if whole else 100.0

    known = "recall" in stages["after"]
    wanted = keep if known else same
    what = "of the recall of known queries" if known else "of the first ten answers"
    after = kept("after")
    if after >= wanted:
        return "yes", f"the index as it is keeps {after:.0f}% {what}, at least {wanted:g}% are wanted"
    least = f"the index as it is keeps {after:.0f}% {what}, less than the {wanted:g}% that are wanted"
    if "re-indexed" not in stages:
        return "no", f"{least}; an --image_student could be measured in an index of its own, too"
    again = kept("re-indexed")
    if again >= wanted:
        return "re-index first", f"{least}; an index of the student's own keeps {again:.0f}%"
    return "no", f"{least}, and an index of the student's own keeps {again:.0f}%"


class DropInReport(Report):
    """Whether a student may serve an index: `verdict` is yes, no, or "re-index first"."""

    @property
    def verdict(self) -> str:
        return str(self.numbers["verdict"])

    @property
    def exit_status(self) -> int:
        """Of the command: 0 for yes, 3 for re-index first, 4 for no."""
        return STATUS[self.verdict]

    def show(self, console: Console | None = None) -> None:
        console = console or Console()
        index, queries = self.numbers["index"], self.numbers["queries"]
        known = "whose photo is known" if queries["known"] else "without known answers"
        console.print(
            f"\n{index['kind']}: {index['photos']:,} photos; {queries['count']:,} queries {known}", highlight=False
        )
        if queries["dropped"]:
            console.print(f"  {queries['dropped']:,} queries left out: the index lacks their photo", highlight=False)
        console.print(self._stages())
        for name, each in self.numbers["thresholds"].items():
            reached = "" if each["reached"] else ", the best balance, since no score reaches what is wanted"
            console.print(
                f"worth showing, {name}: from {each['threshold']:.3f} on ({each['precision']:.0f}% of these find "
                f"their photo on the first page; {each['answered']:.0f}% of the queries get an answer{reached})",
                highlight=False,
                soft_wrap=True,
            )
        console.print(f"{self.verdict}: {self.numbers['reason']}", highlight=False, soft_wrap=True)
        for line in filter(None, (self.saved, self.numbers.get("curve"))):
            console.print(f"written: {line}", highlight=False, soft_wrap=True)

    def _stages(self) -> Table:
        table = Table("", box=SIMPLE, padding=0)
        stages = self.numbers["stages"]
        recall = {key: name for key, name in (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"))}
        known = "recall" in stages["before"]
        for name in [*(recall.values() if known else ()), *(f"same\n{key[6:]}" for key in stages["before"]["same"])]:
            table.add_column(name, justify="right")
        table.add_column("first score", justify="right")
        for name, each in stages.items():
            cells = [f"{each['recall'][key]:.1f}" for key in recall] if known else []
            cells += [f"{share:.0f}%" for share in each["same"].values()]
            score = each["first_score"]
            table.add_row(name, *cells, f"{score['mean']:.3f} ± {score['spread']:.3f}")
        return table
