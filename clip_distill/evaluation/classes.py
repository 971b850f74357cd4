"""Photos with the classes they belong to, and what a class is called in a text.

Shapes: N photos, C classes, T templates.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor

from clip_distill.corpus.decoding import decoded
from clip_distill.corpus.pairs import find_photos
from clip_distill.system.errors import InvalidValue

TEMPLATES = {
    "short": [template("{}") for template in SIMPLE_IMAGENET_TEMPLATES],
    "clip": [template("{}") for template in OPENAI_IMAGENET_TEMPLATES],
    "none": ["{}"],
    "chinese": ["{}", "一张{}的照片。", "一张{}的图片。", "照片里有{}。", "{}的特写。", "模糊的{}照片。", "{}的画。"],
}  # fmt: skip
PHOTO_COLUMNS = ("file", "file_name", "filename", "filepath", "image", "image_path", "path")
LABEL_COLUMNS = ("label", "labels", "class", "classes", "category")
SEPARATORS = ";|"


@dataclass(frozen=True)
class Classes:
    """Photos and their classes.

    Args:
        images: Table of `corpus.layout`, N rows.
        names: [C] what a text calls each class.
        labels: bool [N, C], what is right; None where nobody knows.
    """

    images: pa.Table
    names: list[str]
    labels: Tensor | None

    @property
    def several(self) -> bool:
        """Whether some photo has several classes, or none."""
        return self.labels is not None and bool((self.labels.sum(1) != 1).any())


def find_classes(images: pa.Table, labels: str | None, names: str | None) -> Classes:
    """Classes of photos: a table's, else the folders that they lie in, else only the names.

    Args:
        images: Table of `corpus.layout`; an id is the path from the photos' own folder on.
        labels: A CSV or TSV file, with a column of file names and one of labels, several between `;` or `|`.
        names: A text file with a line a class: what it is called, or label, tab, and what it is called.

    Raises:
        InvalidValue: There are no classes, or a label has no name.
    """
    found = _labelled(images.column("id"), labels) if labels else _folders(images.column("id").to_pylist())
    known = sorted({label for each in found for label in each})
    called = _names(names) if names else {label: label.replace("_", " ") for label in known}
    if not called:
        raise InvalidValue(
            "expected classes: a folder for each class within --photos, a table of labels (--labels FILE.csv), or the "
            "classes' names (--classes FILE.txt, a line each), found none"
        )
    if lacking := [label for label in known if label not in called]:
        raise InvalidValue(
            f"{names}: expected a name for each of {len(known)} labels (label, tab, name), found none for "
            f"{len(lacking)}, for instance {lacking[0]!r}"
        )
    if len(called) < 2:
        raise InvalidValue(f"expected two classes or more to choose among, found {len(called)}: {', '.join(called)}")
    several = [name for name, times in Counter(called.values()).items() if times > 1]
    if several:
        raise InvalidValue(f"expected each class under a name of its own, found {several[0]!r} for several")
    if not known:
        return Classes(images, list(called.values()), None)
    rows = np.flatnonzero([bool(each) for each in found]) if not labels else np.arange(len(images))
    place = {label: column for column, label in enumerate(called)}
    right = torch.zeros(len(rows), len(called), dtype=torch.bool)
    for row, photo in enumerate(rows):
        right[row, [place[label] for label in found[photo]]] = True
    return Classes(images.take(pa.array(rows)), list(called.values()), right)


def _folders(ids: list[str]) -> list[list[str]]:
    """[N] the first folder within the photos' own folder; nothing for photos that lie in none."""
    parts = [id.split("/") for id in ids]
    return [[each[1]] if len(each) > 2 else [] for each in parts]


def _labelled(ids: pa.ChunkedArray, file: str) -> list[list[str]]:
    """[N] the labels that a table gives each photo.

    Raises:
        InvalidValue: It has no such columns, or names none of the photos.
    """
    lines = io.StringIO(decoded(Path(file).read_bytes(), file), newline="")
    rows = list(csv.DictReader(lines, delimiter="\t" if Path(file).suffix == ".tsv" else ","))
    header = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    photo, label = (next((header[n] for n in known if n in header), None) for known in (PHOTO_COLUMNS, LABEL_COLUMNS))
    if photo is None or label is None:
        raise InvalidValue(
            f"{file}: expected a header with a column of files ({', '.join(PHOTO_COLUMNS)}) and one of labels "
            f"({', '.join(LABEL_COLUMNS)}), found {', '.join(header) or 'nothing'}"
        )
    known_ids = ids.combine_chunks()
    owners = find_photos(pa.array([row[photo] for row in rows], known_ids.type), known_ids).to_pylist()
    found: dict[str, list[str]] = {id: [] for id in known_ids.to_pylist()}
    for row, owner in zip(rows, owners, strict=True):
        if owner is not None:
            text = row[label] or ""
            for separator in SEPARATORS[1:]:
                text = text.replace(separator, SEPARATORS[0])
            found[owner] += [part.strip() for part in text.split(SEPARATORS[0]) if part.strip()]
    if not any(found.values()):
        first = rows[0][photo] if rows else "nothing"
        raise InvalidValue(f"{file}: expected labels of the photos, found none; the first row is of {first!r}")
    return list(found.values())


def _names(file: str) -> dict[str, str]:
    """Label → name, of a file with a line a class."""
    lines = [line for line in decoded(Path(file).read_bytes(), file).splitlines() if line.strip()]
    pairs = [[part.strip() for part in line.split("\t", 1)] for line in lines]
    found = {each[0]: each[-1] for each in pairs}
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(each[0] for each in pairs).items() if times > 1)
        raise InvalidValue(f"{file}: expected each class once, found {twice!r} on several lines")
    return found


def templates_of(name: str) -> list[str]:
    """The templates of this name, or of a file with a line each; `{}` stands for the class.

    Raises:
        InvalidValue: It is neither, or a line has no `{}`.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).is_file():
        raise InvalidValue(f"--templates: expected {', '.join(TEMPLATES)} or a file with a line each, found {name!r}")
    found = [line.strip() for line in decoded(Path(name).read_bytes(), name).splitlines() if line.strip()]
    if not found or (bad := next((line for line in found if "{}" not in line), None)) is not None:
        raise InvalidValue(
            f"{name}: expected lines with {{}} where the class goes, found {bad if found else 'no line'!r}"
        )
    return found


def texts_of(names: list[str], templates: list[str]) -> list[str]:
    """C · T texts, class by class."""
    return [template.replace("{}", name) for name, template in itertools.product(names, templates)]
