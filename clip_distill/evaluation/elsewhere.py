"""How far a student may be trusted on texts and photos of another kind than its training data.

Shapes: N inputs, M validation photos or captions, D embedding, K answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.corpus.captions import read_captions
from clip_distill.corpus.layout import Sources, scan
from clip_distill.corpus.report import Skips
from clip_distill.evaluation.compare import Device, Teacher, closeness, embedded
from clip_distill.evaluation.drop_in import first_answers, same_share
from clip_distill.system.errors import InvalidValue
from clip_distill.teachers import load_teacher
from clip_distill.tokens.prompts import whole_words
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec

WORDS = "words"
MOST = 1000  # inputs of a place, and of validation, that are compared
ANSWERS = 10
TRUSTED = 0.75  # of the share of neighbours, and of same answers, that validation has
Students = dict[Tower, tuple[str, TowerSpec, nn.Module, int]]


def inputs_of(place: str, tokenizer: dict[str, Any]) -> tuple[Tower, pa.Table | list[str]]:
    """What lies at a place: texts, or a table of photos; at most a thousand, evenly spaced.

    Args:
        place: `words` (whole words of the teacher's vocabulary), a file of texts, or a folder of photos.
        tokenizer: The teacher's.

    Raises:
        InvalidValue: It is none of them, or there is too little to compare.
    """
    found: pa.Table | list[str]
    if place == WORDS:
        tower, found = "text", whole_words(TokenizerSpec(**tokenizer))
    elif Path(place).is_dir():
        tower, found = "image", scan(None, Sources(train_images=[place], recursive=True)).train.require_images()
    elif Path(place).is_file():
        tower, found = "text", list(dict.fromkeys(text for text, _ in read_captions(place, None, None, Skips())))
    else:
        raise InvalidValue(
            f"--elsewhere: expected {WORDS}, a file of texts or a folder of photos, found nothing at {place}"
        )
    if len(found) < 2:
        raise InvalidValue(f"--elsewhere {place}: expected at least two texts or photos, found {len(found)}")
    rows = spaced(len(found))
    some = found.take(pa.array(rows)) if isinstance(found, pa.Table) else [found[row] for row in rows]
    return ("image" if tower == "image" else "text"), some


def spaced(count: int) -> list[int]:
    """At most `MOST` rows of `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(MOST, count)).round().astype(int)).tolist()


def compare_elsewhere(
    places: list[str],
    teacher: dict[str, Any],
    students: Students,
    guide: Teacher | None,
    validation: dict[str, Any],
    how: Device,
) -> list[dict[str, Any]]:
    """Each student against the teacher at each place, beside what validation gave.

    Args:
        places: As `inputs_of` takes them.
        teacher: Its record; it is loaded by its name.
        students: Tower → name, spec, module, parameters.
        guide: The teacher's embeddings of validation, whose photos texts are to find, and whose captions photos are.
        validation: Tower → `closeness` on validation.
        how: Where towers run.

    Returns:
        A record a place: `place`, `tower`, `inputs`, `cosine`, `neighbours`, `same` (None without a guide), the same of
        `validation`, and `trusted`.

    Raises:
        InvalidValue: A place needs a student that was not given.
    """
    found = []
    for place in places:
        tower, inputs = inputs_of(place, teacher["tokenizer"])
        if tower not in students:
            raise InvalidValue(f"--elsewhere {place}: expected --{tower}_student, to compare there")
        name, spec, module, _ = students[tower]
        theirs = embedded(*load_teacher(teacher["name"], tower), inputs, how)
        own = embedded(spec, module, inputs, how)
        among = None if guide is None else guide.image if tower == "text" else guide.text
        here = measures(own, theirs, among)
        there = {"cosine": validation[tower]["mean_cosine"], "neighbours": validation[tower]["neighbour_overlap"]}
        there["neighbours"] = None if there["neighbours"] is None else 100 * there["neighbours"]
        there["same"] = None if guide is None else same_of_validation(guide, tower, spec, module, how)
        trusted = all(
            here[key] is None or there[key] is None or here[key] >= TRUSTED * there[key]
            for key in ("neighbours", "same")
        )
        record = {"place": place, "tower": tower, "student": name, "inputs": len(own), **here}
        found.append(record | {"validation": there, "trusted": trusted})
    return found


def measures(own: Tensor, theirs: Tensor, among: Tensor | None) -> dict[str, Any]:
    """Cosine, shared neighbours and same answers in per cent, of a student and its teacher on the same inputs.

    Args:
        own: [N, D].
        theirs: [N, D].
        among: [M, D] the teacher's embeddings of what they are to find; None where there is nothing.
    """
    near = closeness(own, theirs)
    found = {
        "cosine": near["mean_cosine"],
        "neighbours": 100 * near["neighbour_overlap"],
        "same": None,
    }
    return found | {"same": None if among is None else same_first(own, theirs, among)}


def same_first(own: Tensor, theirs: Tensor, among: Tensor) -> float:
    """Share in per cent of the first ten answers that are the same for [N, D] questions among [M, D] answers."""
    count = min(ANSWERS, len(among))
    sides = [F.normalize(side.float(), dim=1) for side in (own, theirs, among)]
    mine, right = (first_answers(side, sides[2], count)[1] for side in sides[:2])
    return same_share(mine, right)


def same_of_validation(guide: Teacher, tower: Tower, spec: TowerSpec, module: nn.Module, how: Device) -> float | None:
    """The same share for some photos or captions of validation; None where the teacher has not seen the captions."""
    if guide.text is None:
        return None
    if tower == "image":
        rows = spaced(len(guide.benchmark.images))
        inputs: pa.Table | list[str] = guide.benchmark.images.take(pa.array(rows))
    else:
        rows = spaced(len(guide.benchmark.captions))
        inputs = [guide.benchmark.captions[row] for row in rows]
    theirs, among = (guide.image, guide.text) if tower == "image" else (guide.text, guide.image)
    return same_first(embedded(spec, module, inputs, how), theirs[torch.tensor(rows)], among)


def elsewhere_table(records: list[dict[str, Any]]) -> Table:
    """A row a place, each figure with validation's behind it."""
    table = Table(box=SIMPLE, padding=0, title="elsewhere (in brackets: on validation)")
    table.add_column("place", overflow="fold")
    for name in ("inputs", "cosine", "nearest 10\nshared", "same first\n10 answers"):
        table.add_column(name, justify="right")
    for each in records:
        there = each["validation"]
        cells = [f"{each['inputs']:,}", _pair(each["cosine"], there["cosine"], ".3f", "")]
        cells += [_pair(each[key], there[key], ".0f", "%") for key in ("neighbours", "same")]
        table.add_row(f"{each['place']} ({each['tower']})", *cells)
    return table


def _pair(here: float | None, there: float | None, form: str, unit: str) -> str:
    shown = ["–" if value is None else f"{value:{form}}{unit}" for value in (here, there)]
    return f"{shown[0]} ({shown[1]})"


def warnings_of(records: list[dict[str, Any]]) -> list[str]:
    """A plain sentence for each place where a student should not be trusted."""
    return [
        f"don't trust the {each['tower']} student on {each['place']}: it agrees with its teacher there much less than "
        "on validation"
        for each in records
        if not each["trusted"]
    ]
