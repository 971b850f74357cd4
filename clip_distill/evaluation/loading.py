"""Students by name, for the verbs that measure and write them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

from torch import nn

from clip_distill.exports import OPEN_CLIP_FILE, TOWERS_FILE
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError, require_same
from clip_distill.system.errors import InvalidValue
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec, count_parameters, load_tower


def load_student(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module]:
    """A run's student, or one tower of any model that could be a teacher; on the CPU, in eval mode.

    Args:
        name: Folder that `fit` wrote, be it of one tower or of both, or a teacher's name, such as `local-dir:exported`.
        tower: Which tower is wanted.

    Returns:
        Spec and module. `spec.teacher` is empty for a model that `fit` did not train: it says nothing of its teacher.

    Raises:
        ValueError: The name is neither, or the run trained the other tower.
    """
    folder = Path(name)
    if not folder.is_dir() or (folder / OPEN_CLIP_FILE).is_file():
        try:
            spec, module = load_teacher(f"local-dir:{name}" if folder.is_dir() else name, tower)
        except ValueError as error:
            raise InvalidValue(
                f"{name}: expected a run's folder or a teacher's name; no such folder, and {error}"
            ) from error
        return dataclasses.replace(spec, teacher={}), module
    one_of_both = Path(name) / "student" / tower
    spec, module = load_tower(one_of_both if one_of_both.is_dir() else name)
    if spec.tower != tower:
        raise InvalidValue(f"{name}: expected the run of a student for {tower}s, found one for {spec.tower}s")
    return spec, module


def load_measured(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module, int]:
    """A student to measure: what `load_student` takes, or a folder of files that `clip-distill export` wrote.

    Returns:
        Spec, module, and the number of its parameters, which a file does not keep as such.
    """
    if (Path(name) / TOWERS_FILE).is_file():
        from clip_distill.exports.file_tower import load_file_tower

        return load_file_tower(Path(name), tower)
    spec, module = load_student(name, tower)
    return spec, module, count_parameters(module)


def require_taught_by(what: str, spec: TowerSpec, teacher: dict[str, Any]) -> None:
    """Check that a tower lives in this teacher's embedding space.

    Args:
        what: Names the tower in errors, "student runs/text".
        spec: The tower.
        teacher: Record of the teacher.

    Raises:
        ValueError: It is of another teacher (the differences are listed), or has another width.
    """
    if spec.teacher and spec.teacher["weights_sha256"] != teacher["weights_sha256"]:
        keys = ("name", "weights_sha256", "embed_dim")
        expected, found = ({f"teacher.{key}": t[key] for key in keys} for t in (teacher, spec.teacher))
        require_same(what, expected, found, "Give the teacher, or the store, that the student was trained on.")
    if spec.embed_dim != teacher["embed_dim"]:
        raise InvalidValue(
            f"{what}: expected embeddings of the teacher's width {teacher['embed_dim']}, found {spec.embed_dim}; "
            "only a student of this teacher can be paired with its towers"
        )


def teacher_of_store(root: str) -> dict[str, Any]:
    """The teacher that made a store, from whichever table is there.

    Raises:
        StoreError: There is no finished table.
    """
    places = [*itertools.product(TOWERS, ("val", "train")), ("text", "prompts")]
    for tower, split in places:
        with contextlib.suppress(StoreError):
            return open_table(root, tower, split).manifest.teacher
    tables = ", ".join(f"{tower}-{split}" for tower, split in places)
    raise StoreError(
        f"{root}: expected a store with a finished table ({tables}), found none. Run `clip-distill embed`."
    )
