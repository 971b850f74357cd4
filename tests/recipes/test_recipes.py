"""Every shipped recipe is found by its name, read by `fit`, and builds; its header says how it was run and what came
out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_distill.cli import main as cli
from clip_distill.recipe import Recipe
from clip_distill.recipes import find_recipe, read_recipe, recipe_names
from clip_distill.students import make_student
from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.towers.spec import count_parameters
from clip_distill.train.assemble import make_objective
from clip_distill.train.settings import fit_parser, to_recipe

RECIPES = [find_recipe(name) for name in recipe_names()]


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
    assert f"clip-distill fit --recipe {path.stem}" in command
    assert not Path(read(path)[0].out).is_absolute()


def test_a_file_comes_before_a_shipped_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe("flickr8k_text")["tower"] == "text"
    Path("flickr8k_text").write_text("tower: image", encoding="utf-8")
    assert find_recipe("flickr8k_text") == Path("flickr8k_text")
    assert read_recipe(Path("flickr8k_text")) == {"tower": "image"}


@pytest.mark.parametrize("place", ["flickr8k", "none.yaml", "../recipes/flickr8k_text", ""])
def test_what_is_no_recipe_is_told_with_those_that_there_are(place: str) -> None:
    with pytest.raises(NotFound, match="expected a recipe's YAML, or the name of one.*flickr8k_text_balanced"):
        find_recipe(place)


def test_the_command_line_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--recipe", "flickr8k"])
    assert "the name of one that the package ships (coco_cc_image_balanced" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[tower, text]", "tower: [text"])
def test_a_file_that_is_no_recipe_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidValue, match=r"none\.yaml: expected a recipe's"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("spelling", [["--recipe", "flickr8k_text"], ["--recipe=flickr8k_text"]])
def test_flags_override_a_recipe_wherever_it_stands(spelling: list[str]) -> None:
    flags = ["--data", "mine", "--optimizer.lr", "0.5"]
    for words in ([*flags, *spelling], [*spelling, *flags], [*flags[:2], *spelling, *flags[2:]]):
        parser = fit_parser()
        recipe, _ = to_recipe(parser, parser.parse_args(words))
        assert (recipe.data, recipe.optimizer.lr, recipe.store) == ("mine", 0.5, "stores/flickr8k")
