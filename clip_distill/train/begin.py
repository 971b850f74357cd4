"""How a run begins: its students with their first weights, and its data. The teacher is loaded here, or never."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from clip_distill.batches.features import pack_features
from clip_distill.batches.loader import DistillData
from clip_distill.evaluation.loading import load_student, require_taught_by, teacher_of_store
from clip_distill.recipe import Recipe
from clip_distill.store.manifest import StoreError, require_same, teacher_fingerprint
from clip_distill.students.inherit import inherit
from clip_distill.system.errors import AlreadyExists, InvalidValue
from clip_distill.system.talk import say
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import TOWERS, TowerSpec
from clip_distill.train.assemble import assemble, assemble_both
from clip_distill.train.head import solve_head
from clip_distill.train.online import OnlineTeacher
from clip_distill.train.samples import OnlineTarget
from clip_distill.train.stopping import require_whole
from clip_distill.train.student import in_own_tokens
from clip_distill.train.training import Training


def first_students(recipe: Recipe, fresh: bool) -> tuple[Training, DistillData, Any]:
    """What trains, with the weights it begins with; its data; and what it took from the teacher, if anything.

    Args:
        recipe: The run.
        fresh: Whether it begins; a resumed run has weights.
    """
    if recipe.tower == "both":
        return *both_students(recipe), None
    return new_student(recipe, fresh)


def load_weights(module: Training, checkpoint: Path) -> None:
    """Take a checkpoint's weights, and nothing else of it.

    Raises:
        InvalidValue: It is not there, or damaged.
    """
    if not checkpoint.is_file():
        raise InvalidValue(f"{checkpoint}: expected a checkpoint to go on from, found none")
    require_whole(checkpoint)
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])


def new_student(recipe: Recipe, fresh: bool) -> tuple[Training, DistillData, Any]:
    """A student with its first weights, its data, and what it took from the teacher, if anything.

    Args:
        recipe: The run.
        fresh: Whether it begins; a resumed run has weights.

    Raises:
        InvalidValue: The student to go on with is of another tower or teacher.
    """
    if recipe.start_from is not None:
        spec, _ = load_student(recipe.start_from, recipe.one)
        require_taught_by(f"start_from {recipe.start_from}", spec, teacher_of_store(recipe.store))
    online, teach = online_target(recipe)
    new = fresh and recipe.start_from is None  # else it has weights already
    cuts = recipe.student.init == "teacher" and new
    source = ((online.spec, teach.module) if online else checked_teacher(recipe)) if cuts else None
    L.seed_everything(recipe.seed, workers=True, verbose=False)  # after the teacher, whose making draws numbers too
    module, data = assemble(recipe, online, teach)
    report = None
    if source is not None:
        source = in_own_tokens(module.spec, data.train, source)
        report = inherit(module.spec, module.student, source[0], source[1], recipe.student.select)
        source = None  # training needs no teacher
    module.prepare(recipe)
    if recipe.loader.features is not None:
        pack_features(recipe.loader.features, module.spec, module.student, data)
    if recipe.student.probe and new:
        solve_head(module, data, recipe.student.probe)
    return module, data, report


def both_students(recipe: Recipe) -> tuple[Training, DistillData]:
    """For `tower: both`, the two students that the recipe names, and pairs.

    Raises:
        ValueError: A student is of another teacher than the store.
    """

    students, teacher = {}, teacher_of_store(recipe.store)
    for tower, name in zip(TOWERS, (recipe.image_student, recipe.text_student), strict=True):
        assert name is not None
        students[tower] = load_student(name, tower)
        require_taught_by(f"{tower}_student {name}", students[tower][0], teacher)
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    module, data = assemble_both(recipe, students)
    module.prepare(recipe)
    return module, data


def online_target(recipe: Recipe) -> tuple[Any, Any]:
    """For `target: online`, the teacher, checked against the store that validates; else (None, None).

    Raises:
        StoreError: The teacher is not the one that made the store.
    """
    if recipe.target != "online":
        return None, None

    spec, module = checked_teacher(recipe)
    return OnlineTarget(spec, recipe.augment), OnlineTeacher(spec, module)


def checked_teacher(recipe: Recipe) -> tuple[TowerSpec, nn.Module]:
    """The recipe's teacher, or the store's; it must be the one that made the store.

    Raises:
        StoreError: It is another one, or the store was made by several.
    """

    stored = teacher_of_store(recipe.store)
    if "ensemble" in stored:
        several = ", ".join(stored["ensemble"])
        raise StoreError(
            f"{recipe.store}: expected one teacher to load, found several ({several}). Use --target stored and "
            "--student.init random"
        )
    name = recipe.teacher or stored["name"]
    spec, module = load_teacher(name, recipe.one)
    expected, found = teacher_fingerprint(stored), teacher_fingerprint(spec.teacher)
    require_same(
        f"teacher {name!r}",
        expected,
        found,
        f"Give --teacher the one that made the store ({stored['name']}), or make a store with this one.",
    )
    return spec, module


def prepare_folder(recipe: Recipe, out: Path) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start; a folder with another run in it is an error.

    Raises:
        FileExistsError: `out` holds a run, and neither resume nor overwrite is given.
    """

    last = out / "checkpoints" / "last.ckpt"
    if recipe.resume:
        if recipe.resume == "best":
            return None
        if last.is_file():
            require_whole(last)
            return last
        say(f"{out}: nothing to resume from (no {last}); starting anew")
        return None
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    if any((out / "checkpoints").glob("*.ckpt")) and not recipe.overwrite:
        raise AlreadyExists(
            f"{out} holds a run. Use --resume to go on with it, --overwrite to replace it, or another --out"
        )
    if recipe.overwrite:
        for part in ("checkpoints", "logs", "student"):
            shutil.rmtree(out / part, ignore_errors=True)
    return None
