"""`clip-distill plan`: hours, disk, memory and batch size of embed and fit, from a few measured batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.recipes import add_recipe, read_recipe
from clip_distill.system.arguments import Place, filled, flat, layer, new_parser, parse_keys
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.planning.jobs import Words
    from clip_distill.planning.report import PlanReport
    from clip_distill.system.arguments import Parser

DESCRIPTION = """Measure a few batches of every stage on this machine, and state what embed and fit will take: hours,
disk, peak memory, and the largest batch that fits. Nothing is stored."""
EXAMPLES = """\
  # both towers, with the students of the balanced preset, as fit has them where no recipe is given
  clip-distill plan --data DATA --teacher ViT-B-32/openai
  # five views an image, and the student of a recipe
  clip-distill plan --recipe flickr8k_text --teacher ViT-B-32/openai --views 5 --augment crop_flip
  # both towers, each with the student, loss and loader of its own recipe
  clip-distill plan --data DATA --teacher ViT-B-32/openai --image_recipe image.yaml --text_recipe text.yaml
  # a student of your own, on a GPU; the plan as JSON
  clip-distill plan --data DATA --teacher ViT-L-14/openai --tower image --student.options.width 384 \\
    --loader.batch_size 512 --trainer.max_epochs 30 --trainer.precision bf16-mixed --device cuda --out plan.json"""


def parser(lightning: bool = True) -> Parser:
    """The options of embed that cost something, and a recipe's keys; without Lightning's they are there at once."""
    from clip_distill.planning.options import OWN, Options
    from clip_distill.recipe import Recipe
    from clip_distill.train.settings import TRAINER, add_trainer

    result = new_parser("plan", DESCRIPTION, EXAMPLES)
    add_recipe(result)
    result.add_class_arguments(Options, as_group=False)
    result.add_class_arguments(Recipe, as_group=False, skip=set(OWN))
    result.set_defaults(data=None)
    if lightning:
        add_trainer(result)
    else:
        result.add_argument("--trainer", type=dict, default={}, help=TRAINER)
    return result


def plan(recipe: Place | None = None, *, trainer: Mapping[str, Any] | None = None, **keys: Any) -> PlanReport:
    """Measure a few batches of every stage on this machine, and state what embed and fit will take; nothing is stored.

    Keywords are those of `embed` that cost something (`teacher`, `views`, `batch_size`, …), `seconds` for each stage,
    and a recipe's keys as `fit` takes them; `clip-distill plan --help` lists them.

    Args:
        recipe: A YAML's path, or the name of one that the package ships; keywords override it.
        trainer: Arguments of Lightning's Trainer.
        keys: All others; `data` and `teacher` at least.

    Returns:
        Hours, disk, peak memory and the largest batch that fits; `to_dict()` has every number.

    Raises:
        Error: A setting does not exist or does not fit, or the data are not there.

    Example:
        >>> hours = cd.plan(data=DATA, teacher=TEACHER, tower="text", seconds=0.1).to_dict()["fit"]["text"]
    """
    from clip_distill.planning.jobs import Words

    arguments = parser()
    base = {} if recipe is None else read_recipe(recipe)
    given = layer({"trainer": trainer or {}, **keys}, base)

    def above(file: str | None) -> dict[str, Any]:
        return given if file is None else layer(given, read_recipe(file))

    def read(file: str | None, settings: Mapping[str, Any]) -> Any:
        return parse_keys(arguments, filled(above(file), settings))

    return state(Words(arguments, read, lambda file: (above(file), recipe is not None or file is not None)))


def command(argv: Sequence[str]) -> PlanReport:
    """What `clip-distill plan` does."""
    from clip_distill.train.flags import apart

    parser(lightning=False).parse_args(apart(argv)[0])  # help and typos need not wait for torch
    from clip_distill.planning.jobs import Words

    def words(file: str | None) -> list[str]:
        return list(argv) if file is None else ["--recipe", file, *argv]

    def read(file: str | None, settings: Mapping[str, Any]) -> Any:
        arguments = parser()
        arguments.set_defaults(flat(settings))
        return arguments.parse_args(words(file))

    def given(file: str | None) -> tuple[dict[str, Any], bool]:
        found = parser().parse_args(words(file), defaults=False).as_dict()
        return found, "recipe" in found

    return state(Words(parser(), read, given))


def state(words: Words) -> PlanReport:
    """Measure and state."""
    from clip_distill.planning.jobs import configs_of, measure
    from clip_distill.planning.options import Options
    from clip_distill.planning.report import PlanReport
    from clip_distill.system.files import write_json

    config = words.config(None)
    options = Options(**{each.name: config[each.name] for each in fields(Options)})
    report = measure(options, configs_of(options, config, words.config), words)
    if options.out and options.out.endswith(".json"):
        write_json(Path(options.out), report)
        return PlanReport(report, options.out)
    if options.out:
        say(f"{options.out} is the run's folder; to write the plan, name a file: --out plan.json")
    return PlanReport(report)
