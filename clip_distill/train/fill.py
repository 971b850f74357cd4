"""What a preset fills in for `fit`, where neither flags nor a recipe say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_distill.recipes import read_recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.system.talk import say
from clip_distill.train.preset import Facts, Settings, settings_of, without
from clip_distill.train.tables import other

DEFAULT = "balanced"
FILLED = ("student", "loss", "optimizer", "loader", "ema", "prompts")


def fill(given: Mapping[str, Any], has_recipe: bool) -> Settings:
    """Settings, nested as a recipe's, for what the user leaves open; what a preset chose is said.

    Args:
        given: What the user gives, nested.
        has_recipe: Whether a recipe is among it.

    Raises:
        StoreError: The store has no training table of the tower.
        InvalidValue: There is no such preset.
    """
    if given.get("start_from"):
        return _goes_on(given)
    new = given.get("tower") in ("image", "text") and given.get("target") in (None, "stored")
    preset = given.get("preset") or (DEFAULT if new and not has_recipe else "none")
    if preset == "none":
        return {}
    own = Path(str(given.get("out"))) / "recipe.yaml"
    if given.get("resume") and not given.get("preset") and own.is_file():
        recipe = read_recipe(own)  # the run goes on as it began, whatever the store has become
        return {key: recipe[key] for key in FILLED} | {"trainer": {"max_epochs": recipe["trainer"]["max_epochs"]}}
    settings, lines = settings_of(preset, facts_of(given))
    say(*lines)
    return without(settings, given)


def _goes_on(given: Mapping[str, Any]) -> Settings:
    """A run's settings, for its student to go on.

    Raises:
        NotFound: There is no such run.
    """
    recipe = read_recipe(Path(str(given["start_from"])) / "recipe.yaml")
    kept = {key: value for key, value in recipe.items() if key not in ("out", "trainer", "start_from")}
    lr, epochs = recipe["optimizer"]["lr"] / 3, -(-(recipe["trainer"]["max_epochs"] or 1) // 2)
    if given.get("target") == "photo":
        kept["translations"] = None
    if "names" in (given.get("loss") or {}):
        kept.pop("loss")  # its weights and options are for its own
    if recipe["loader"].get("features"):
        kept["loader"] = recipe["loader"] | {"features": f"{given.get('out')}/features"}
    say(f"from {given['start_from']}: its settings and its student, {epochs} epochs from learning rate {lr:.2g} on")
    return kept | {"optimizer": recipe["optimizer"] | {"lr": lr}, "trainer": {"max_epochs": epochs}}


def facts_of(given: Mapping[str, Any]) -> Facts:
    """What a preset is derived from: `tower`, `store` and `out` are given, and `translations` where there are any.

    Raises:
        StoreError: The store has no training table of the tower.
    """
    tower, foreign = given["tower"], bool(given.get("translations"))
    paired = _opened(given["store"], other(tower), "train")
    prompts = _opened(given["store"], "text", "prompts") if tower == "text" and not foreign else None
    table = _opened(given["store"], tower, "train")
    source = table or prompts
    if source is None:
        what, option = ("photos", "train_images") if tower == "image" else ("captions", "train_captions")
        words = ", or --prompts vocabulary, which needs no data" if tower == "text" else ""
        raise StoreError(
            f"{given['store']}: expected a finished store with the teacher's embeddings of {what} to train on "
            f"({tower}-train), found none. `clip-distill embed` makes them of {what}: give it --data or "
            f"--sources.{option}{words}"
        )
    return Facts(
        tower,
        source.manifest.teacher,
        0 if table is None else len(table),
        source.manifest.views,
        paired is not None,
        foreign,
        str(given["out"]),
        0 if prompts is None else len(prompts),
    )


def _opened(store: str, tower: str, split: str) -> Store | None:
    """A table, if it is there and finished."""
    try:
        return open_table(store, tower, split)
    except StoreError:
        return None
