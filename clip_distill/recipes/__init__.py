"""The recipes that the package ships, each a complete YAML, and where a recipe's name or path is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # public, though not in its __all__

from clip_distill.system.arguments import Parser, Place
from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.system.registry import require_trust
from clip_distill.system.typos import did_you_mean

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Of all recipes that the package ships."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(place: Place) -> Path:
    """A recipe's file.

    Args:
        place: A YAML's path, or the name of a recipe that the package ships; a file of that name comes first.

    Raises:
        NotFound: It is neither.
    """
    if os.path.isfile(place):
        return Path(place)
    shipped = FOLDER / f"{os.fspath(place)}.yaml"
    if os.fspath(place) in recipe_names():
        return shipped
    raise NotFound(
        f"{os.fspath(place)}: expected a recipe's YAML, or the name of one that the package ships "
        f"({', '.join(recipe_names())}), found neither{did_you_mean(os.fspath(place), recipe_names())}"
    )


def read_recipe(place: Place, runs: bool = True) -> dict[str, Any]:
    """A recipe's settings, not checked yet.

    Args:
        place: As for `find_recipe`.
        runs: Whether what the recipe names is to be imported.

    Raises:
        NotFound: It is not there.
        InvalidValue: It is no mapping of keys to values, or names code of a stranger's.
    """
    path = find_recipe(place)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidValue(f"{path}: expected a recipe's YAML, found: {error}") from error
    if not isinstance(found, dict):
        raise InvalidValue(
            f"{path}: expected a recipe's keys and values, such as `tower: text`, found "
            f"{'nothing' if found is None else type(found).__name__}; `clip-distill fit --recipe {recipe_names()[0]} "
            "--print_config` prints one"
        )
    if runs:
        require_trust(str(path), found)
    return found


def add_recipe(parser: Parser) -> None:
    """Give a parser `--recipe`, by whose settings all others are filled."""
    parser.add_argument("--recipe", action=ByName, help="a YAML, or the name of a shipped recipe; flags override it")


class ByName(ActionConfigFile):
    """jsonargparse's file of settings, which may be a shipped recipe's name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = find_recipe(values)
        except NotFound as error:
            raise TypeError(str(error)) from error  # what argparse tells as an argument that does not fit
        try:
            read_recipe(path)
        except InvalidValue as error:
            raise TypeError(str(error)) from error
        super().__call__(parser, cfg, str(path), option_string)  # type: ignore[no-untyped-call]
