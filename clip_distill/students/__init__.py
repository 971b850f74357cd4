"""Small towers to train: a table of builders, `(teacher, **options) -> (TowerSpec, nn.Module)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from clip_distill.system.errors import InvalidValue
from clip_distill.system.registry import resolve
from clip_distill.towers.spec import Tower, TowerSpec

STUDENTS = {
    "vit": "clip_distill.students.image:vit",
    "timm": "clip_distill.students.image:timm_backbone",
    "timm_cut": "clip_distill.students.cut:timm_cut",
    "transformer": "clip_distill.students.text:transformer",
}
DEFAULT_STUDENT: dict[Tower, str] = {"image": "vit", "text": "transformer"}


def make_student(
    tower: Tower, name: str | None, teacher: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[TowerSpec, nn.Module]:
    """Build a student whose output width, tokenizer and pixel normalisation are the teacher's.

    Args:
        tower: Which tower it is to replace.
        name: A name in STUDENTS or `module:Attr`; None is the default of the tower.
        teacher: The teacher's record, from a store's manifest.
        options: Keyword arguments of the builder.

    Raises:
        ValueError: An option does not exist or does not fit, or the student is of the other tower.
    """
    name = name or DEFAULT_STUDENT[tower]
    builder = resolve("student", STUDENTS, name)
    known = list(inspect.signature(builder).parameters.values())[1:]
    names = [parameter.name for parameter in known]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known)
    if not open_ended and (unknown := set(options) - set(names)):
        raise InvalidValue(
            f"student {name!r} has no option {', '.join(sorted(unknown))}; its options are {', '.join(names)}"
        )
    required = [p.name for p in known if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing := set(required) - set(options):
        raise InvalidValue(
            f"student {name!r} needs the options {', '.join(sorted(missing))} (--student.options.NAME VALUE)"
        )
    spec, module = builder(teacher, **options)
    if spec.tower != tower:
        raise InvalidValue(f"expected a student for the {tower} tower, found {name!r}, which is a {spec.tower} tower")
    return spec, module
