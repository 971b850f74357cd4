"""Any teacher that is to see photos upright, `upright:NAME`: they are turned as their EXIF orientation says.

CLIP's own pipelines leave a photo as it lies in its file. A phone's portrait lies on its side there.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from clip_distill.pixels.plain import EXIF
from clip_distill.towers.spec import Tower, TowerSpec

PREFIX = "upright:"


def load(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module]:
    """One tower of the teacher, whose record says that photos are turned; its text tower is what it was."""
    from clip_distill.teachers import load_teacher

    spec, module = load_teacher(name.removeprefix(PREFIX), tower)
    teacher = spec.teacher | {"name": name, "preprocess": spec.teacher["preprocess"] | {EXIF: True}}
    preprocess = spec.preprocess | {EXIF: True} if tower == "image" else {}
    return replace(spec, preprocess=preprocess, teacher=teacher), module
