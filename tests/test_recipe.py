"""Every committed recipe is read by `fit` and builds, and its header says how it was run and what came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_distill.recipe import Recipe
from clip_distill.students import make_student
from clip_distill.towers.spec import count_parameters
from clip_distill.train.assemble import make_objective
from clip_distill.train.settings import fit_parser, to_recipe

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


def read(path: Path) -> tuple[Recipe, dict[str, Any]]:
    parser = fit_parser()
    return to_recipe(parser, parser.parse_args(["--recipe", str(path)]))


def test_there_are_recipes_for_both_towers() -> None:
    assert {read(path)[0].tower for path in RECIPES} == {"image", "text"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_student_and_its_losses(path: Path, make_record: Callable[..., dict[str, Any]]) -> None:
    recipe, trainer = read(path)
    spec, student = make_student(recipe.tower, recipe.student.name, make_record(512), recipe.student.options)
    assert (spec.tower, spec.embed_dim) == (recipe.tower, 512)
    assert count_parameters(student) > 0
    embeddings = torch.randn(2, 4, 512)
    loss, parts = make_objective(recipe.loss, {"bank": torch.randn(8, 512)})(*embeddings)
    assert torch.isfinite(loss)
    assert list(parts) == recipe.loss.names
    assert trainer["max_epochs"] > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_was_run_and_what_came_out(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    for key in ("command:", "hardware:", "result:"):
        said = [line.removeprefix(key).strip() for line in header if line.startswith(key)]
        assert said, f"{path.name} has no '# {key} …' line in its header"
        assert said[0], f"{path.name} leaves '{key}' empty"
    command = next(line for line in header if line.startswith("command:"))
    assert f"clip-distill fit --recipe {path.relative_to(FOLDER.parent).as_posix()}" in command
    assert not Path(read(path)[0].out).is_absolute()
