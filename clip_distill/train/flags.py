"""The words of `clip-distill fit`, looked at before torch is loaded: help, typos, folders that are not there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clip_distill.recipes import read_recipe
from clip_distill.system.arguments import Formatter, Parser, layer
from clip_distill.system.typos import require_place
from clip_distill.train.settings import fit_parser

READS = ("data", "store", "image_student", "text_student")  # places that must be there
COMMON = {
    "help", "recipe", "preset", "tower", "data", "store", "out", "start_from", "student.name", "student.options",
    "student.init", "loss.names", "loss.weights", "loss.scales", "optimizer.lr", "loader.batch_size", "loader.workers",
    "target", "translations", "ema", "mixup", "holdout", "prompts", "seed", "resume", "overwrite", "report", "find_lr",
    "trainer",
}  # fmt: skip
EXAMPLES_SHOWN = 4


class Short(Formatter):
    """Help without types and defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or ""


def help_if_asked(argv: Sequence[str], description: str, examples: str) -> None:
    """Show what people set, or with `--help all` everything, and end, if the words ask for it."""
    place = next((number for number, word in enumerate(argv) if word in ("-h", "--help")), None)
    if place is None:
        return
    parser = fit_parser(description, examples, lightning=False)
    if "all" not in argv[place + 1 : place + 2]:
        _shorten(parser, examples)
    parser.print_help()
    parser.exit()


def _shorten(parser: Parser, examples: str) -> None:
    for action in parser._actions:
        known = {name.lstrip("-") for name in action.option_strings} & COMMON
        action.help = re.split(r"(?<!e\.g)\. |; ", action.help or "")[0].rstrip(".") if known else argparse.SUPPRESS
    parser.formatter_class = Short
    parser.usage = "clip-distill fit --tower image|text --data DATA --store STORE --out RUN [options]"
    shown = examples.split("\n  # ")[:EXAMPLES_SHOWN]
    parser.epilog = "examples:\n" + "\n  # ".join(shown) + "\n\n`clip-distill fit --help all` lists every flag"


def as_fields(argv: Sequence[str]) -> list[str]:
    """The words with `--from` as the recipe's field, which can't be called so, and what it says that has no default.

    Raises:
        NotFound: There is no such run.
    """
    words = [re.sub(r"^--from(?=$|=)", "--start_from", word) for word in argv]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--start_from")
    run = first.parse_known_args(words)[0].start_from
    if run is None:
        return words
    require_place("--from", run)
    recipe = read_recipe(Path(run) / "recipe.yaml")
    return [*(word for key in ("tower", "store") for word in (f"--{key}", str(recipe[key]))), *words]


def require_places(argv: Sequence[str]) -> dict[str, Any]:
    """What is given, nested, once its words are flags that exist, and the folders are there that it reads.

    Raises:
        NotFound: A folder is not there.
    """
    own, trainer = apart(argv)
    parser = fit_parser(lightning=False)
    given: dict[str, Any] = parser.parse_args(own, defaults=False).as_dict()
    parser.parse_args(own)  # tells what is required and lacks
    for name in READS:
        if isinstance(place := given.get(name), str):
            require_place(f"--{name}", place)
    return layer(trainer, given)


def apart(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The recipe's words, and the Trainer's arguments by their dotted names, which Lightning's own parser checks."""
    own: list[str] = []
    trainer: dict[str, Any] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            flag, sign, value = word[2:].partition("=")
            name = flag.rstrip("+").replace("-", "_") if flag.startswith("trainer.") else ""
            if name:
                trainer[name] = yaml.safe_load(value) if sign else True
                continue
        if name:
            trainer[name] = yaml.safe_load(word)
        else:
            own.append(word)
    return own, trainer
