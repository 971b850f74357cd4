"""A run's settings: the recipe's keys and the Trainer's arguments, from a YAML, from flags or from Python."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from clip_distill.recipe import Recipe
from clip_distill.recipes import add_recipe
from clip_distill.system.arguments import Parser, new_parser
from clip_distill.system.files import write_bytes

LIGHTNING = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"
TRAINER = f"any argument of Lightning's Trainer, as --trainer.max_epochs 10 ({LIGHTNING})"
TRAINER_DEFAULTS = {
    "max_epochs": 10,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


def fit_parser(description: str = "", examples: str = "", lightning: bool = True) -> Parser:
    """The recipe's keys and the Trainer's arguments.

    Args:
        description: What the command does.
        examples: Of its use.
        lightning: Check the Trainer's arguments by Lightning's own; without it they are taken as they are, at once.
    """
    parser = new_parser("fit", description, examples)
    add_recipe(parser)
    parser.add_argument(
        "--preset",
        type=Literal["smallest", "balanced", "best", "none"],
        help="where no recipe is given, student, loss and schedule by the teacher and the data (default: balanced); "
        "flags override it, none keeps to the defaults below",
    )
    parser.add_class_arguments(Recipe, as_group=False)
    parser.set_defaults(data=None)  # `sources` may say where everything is
    parser.add_argument(
        "--find_lr",
        type=bool,
        default=False,
        help="search for a learning rate for 100 steps, say it, and train nothing",
    )
    if lightning:
        add_trainer(parser)
    else:
        parser.add_argument("--trainer", type=dict, default={}, help=TRAINER)
    return parser


def add_trainer(parser: Parser) -> None:
    """Give a parser the arguments of Lightning's Trainer, with `fit`'s defaults."""
    from lightning.pytorch import Trainer

    # rows are shared out by our own sampler, and where checkpoints and logs go is `out`'s business
    skip = {"use_distributed_sampler", "default_root_dir"}
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip=skip)
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})


def to_recipe(parser: Parser, config: Any) -> tuple[Recipe, dict[str, Any]]:
    """The typed recipe, and the Trainer's arguments with their callbacks and loggers built.

    Raises:
        InvalidValue: Values don't fit together.
    """
    built = parser.instantiate(config)
    return Recipe(**{each.name: built[each.name] for each in fields(Recipe)}), dict(built["trainer"].as_dict())


def write_recipe(parser: Parser, config: Any, out: Path) -> None:
    """The complete recipe of the run, which `fit --recipe` takes again."""
    chosen = config.clone()
    for key in ("recipe", "preset", "find_lr"):
        chosen.pop(key, None)
    for key in ("resume", "overwrite"):
        chosen[key] = False
    write_bytes(out / "recipe.yaml", parser.dump(chosen, skip_unset=True).encode())
