"""Recall of exported files beside the students they were made from, on the data's validation photos and captions.

Shapes: N_i photos, N_t captions, D embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_distill.corpus.layout import Corpus
from clip_distill.evaluation.compare import Device, embedded, readable
from clip_distill.evaluation.recall import retrieval_metrics
from clip_distill.evaluation.retrieval import Benchmark, encode_images
from clip_distill.exports import TOWERS_FILE
from clip_distill.exports.card import write_card
from clip_distill.exports.file_tower import load_file_tower
from clip_distill.exports.save import FellShort
from clip_distill.exports.target import Given
from clip_distill.runtimes import RUNTIMES
from clip_distill.system.files import read_json, write_json
from clip_distill.towers.reduction import MAP_FILE, PREFIX, read_reduction
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec

MOST_PHOTOS = 1000
HERE = Device(torch.device("cpu"), 64, 0)
Writer = Callable[[Path, Given], list[str] | None]
Loaded = Mapping[Tower, tuple[TowerSpec, nn.Module]]


@dataclass
class Held:
    """Photos and captions that belong together, and what the students in torch make of them, found once.

    Args:
        benchmark: The first photos of the validation split, with their captions.
        students: Tower → spec and module.
        known: Tower → its embeddings, as far as they were asked for.
    """

    benchmark: Benchmark
    students: Loaded
    known: dict[Tower, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(corpus: Corpus, students: Loaded) -> Held | None:
        """None where the data has no validation photo with a caption; photos that can't be read are left out."""
        images = corpus.val.images.slice(0, MOST_PHOTOS)
        if not images.num_rows or not corpus.val.captions.num_rows:
            return None
        spec, module = students["image"]
        found, ids = encode_images(spec, module.eval(), images, HERE.device, HERE.batch_size, HERE.workers)
        try:
            benchmark = Benchmark.of(readable(images, ids), corpus.val.captions)
        except ValueError:
            return None
        return Held(benchmark, students, {"image": found})

    def whole(self, tower: Tower) -> Tensor:
        if tower not in self.known:
            spec, module = self.students[tower]
            self.known[tower] = self.embed(tower, spec, module.eval())
        return self.known[tower]

    def embed(self, tower: Tower, spec: TowerSpec, module: nn.Module) -> Tensor:
        """[N_i, D] or [N_t, D]."""
        inputs = self.benchmark.images if tower == "image" else self.benchmark.captions
        return embedded(spec, module, inputs, HERE)

    def recall(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        """R@10 both ways and the mean recall, in per cent. Zeros behind an embedding are left out."""
        width = min(images.shape[1], texts.shape[1])
        found = retrieval_metrics(images[:, :width], texts[:, :width], self.benchmark.image_of_caption)
        return {name: found[name] for name in ("t2i_r10", "i2t_r10", "mean_recall")}


def files_recall(folder: Path, held: Held) -> dict[str, Any]:
    """Each exported tower's recall, with the other student as it is in torch.

    Args:
        folder: Of the export.
        held: What to measure on.

    Returns:
        `photos`, `captions`, `student` (both students), and tower → the same of its file; empty where the files can't
        be run on this machine.
    """
    info = read_json(folder / TOWERS_FILE)
    if not RUNTIMES[info["runtime"]].reader:
        return {}
    counts = {"photos": len(held.benchmark.images), "captions": len(held.benchmark.captions)}
    report: dict[str, Any] = counts | {"student": held.recall(held.whole("image"), held.whole("text"))}
    for tower in TOWERS:
        if tower in info:
            spec, module, _ = load_file_tower(folder, tower)
            mine = held.embed(tower, spec, module)
            pair = (mine, held.whole("text")) if tower == "image" else (held.whole("image"), mine)
            report[tower] = held.recall(*pair)
    return report


def lost_too_much(report: Mapping[str, Any], most: float) -> dict[Tower, str]:
    """Towers whose files lose more than `most` points of text→image R@10, and by how much, in words."""
    lost = {tower: report["student"]["t2i_r10"] - report[tower]["t2i_r10"] for tower in TOWERS if tower in report}
    return {
        tower: f"the {tower} file: expected at most {most} points of text→image R@10 lost, found {points:.1f} on "
        f"{report['photos']:,} photos and {report['captions']:,} captions; --max_points_lost sets another bound"
        for tower, points in lost.items()
        if points > most
    }


@dataclass(frozen=True)
class Job:
    """What all folders of one command share.

    Args:
        given: What is exported.
        students: Tower → what it was loaded from; None for the teacher's own.
        teacher: Its name, where it has another one now.
        held: What recall is measured on; None: nothing.
        most_lost: Points of R@10.
    """

    given: Given
    students: dict[str, str | None]
    teacher: str | None
    held: Held | None
    most_lost: float

    def write(self, write: Writer, name: str, aside: Path) -> list[str]:
        """Write a folder: files, what goes along, and the card.

        Args:
            write: The target's.
            name: Of the target.
            aside: Empty folder.

        Returns:
            What fell short, and is not there, a line each.

        Raises:
            FellShort: Both towers did.
        """
        short = list(write(aside, self.given) or ())
        recall: dict[str, Any] = {}
        if self.held is not None and (aside / TOWERS_FILE).is_file():
            recall = files_recall(aside, self.held)
            lost = lost_too_much(recall, self.most_lost) if recall else {}
            short += lost.values()
            if len(lost) == len(TOWERS):
                raise FellShort("; ".join(short))
            _leave_out(aside, list(lost))
        _copy_map(aside, self.given.teacher, self.teacher)
        write_card(aside, name, self.given, self.students, recall, short)
        return short


def _leave_out(folder: Path, towers: list[Tower]) -> None:
    """Delete the files of towers that fell short."""
    info = read_json(folder / TOWERS_FILE)
    for tower in towers:
        file = folder / info.pop(tower)["file"]
        for path in (file, file.with_suffix(".bin")):
            path.unlink(missing_ok=True)
    if towers:
        write_json(folder / TOWERS_FILE, info)


def _copy_map(folder: Path, info: dict[str, Any], teacher: str | None) -> None:
    """Of a teacher that was reduced, the map goes along: what the parent embedded is reduced by it, too."""
    name = teacher or info["name"]
    if name.startswith(PREFIX):
        place = Path(name.removeprefix(PREFIX))
        read_reduction(place)
        shutil.copyfile(place / MAP_FILE, folder / MAP_FILE)
