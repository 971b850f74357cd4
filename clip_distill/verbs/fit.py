"""`fit`: train a student by a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.recipe import Recipe
from clip_distill.recipes import read_recipe
from clip_distill.system import shown
from clip_distill.system.arguments import Place, filled, flat, layer, parse_keys, plain
from clip_distill.system.ends import ended_by
from clip_distill.system.errors import Error, InvalidValue
from clip_distill.system.files import only_one
from clip_distill.system.talk import is_first, say

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from clip_distill.system.arguments import Parser
    from clip_distill.towers.spec import Tower
    from clip_distill.train.training import Training

DESCRIPTION = "Train a small image or text encoder by a recipe, or two that are trained already together."
EXAMPLES = """\
  # a recipe as it is, on your data and store
  clip-distill fit --recipe flickr8k_text --data DATA --store stores/b32 --out runs/text
  # any key of the recipe, and any argument of Lightning's Trainer, is a flag
  clip-distill fit --recipe flickr8k_text --student.options.transformer_width 64 --optimizer.lr 2e-3 \\
    --loss.names '[cosine, gram_kl]' --trainer.max_epochs 5 --trainer.precision bf16-mixed
  # no recipe: student, loss and schedule follow from the teacher in the store and the amount of data
  clip-distill fit --tower text --data DATA --store stores/b32 --out runs/text
  clip-distill fit --tower image --data DATA --store stores/b32 --out runs/image --preset smallest
  # neither: the default ViT from random weights, on all GPUs
  clip-distill fit --tower image --data DATA --store stores/b32 --out runs/image --preset none --trainer.strategy ddp
  # start from the teacher's own weights, cut to the student's size
  clip-distill fit --recipe flickr8k_text --student.init teacher --student.vocabulary corpus
  # a long run on small images: mixup, an average of the weights, a stem and two stages that keep the teacher's weights
  clip-distill fit --recipe flickr8k_image --mixup 0.2 --ema 0.999 --student.freeze 2
  # a learning rate from 100 steps, before the run
  clip-distill fit --recipe flickr8k_text --find_lr
  # go on after an interruption
  clip-distill fit --recipe runs/text/recipe.yaml --resume
  # next month, with new photos (after `embed` has added them): go on with the student, and say whether it got better
  clip-distill fit --from runs/image --out runs/image-2
  # both students together, after each was distilled: on pairs, by what they keep of the teacher and of each other
  clip-distill fit --tower both --data DATA --store stores/b32 --image_student runs/image --text_student runs/text \\
    --out runs/both --optimizer.lr 1e-4 --loss.between '{both_affinity: 1.0, both_infonce: 0.1}'
  # a loss of your own: class MyLoss in my_loss.py, called with student and target [B, D]
  clip-distill fit --recipe flickr8k_text --loss.names '["my_loss:MyLoss"]'"""


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A training that has ended. It stands for its folder wherever a student's is asked for.

    Args:
        out: The folder: student/, checkpoints/, logs/, recipe.yaml.
        students: Tower → the folder of its student; empty where nothing was trained.
        mean_recall: Of the best epoch, in per cent: the mean of recall@1, 5 and 10, both ways; where rows of the
            training were held out, of its match and neighbours shared with the teacher.
        learning_rate: What `find_lr` suggests, where it was asked for.
    """

    out: Path
    students: Mapping[Tower, Path] = field(default_factory=dict)
    mean_recall: float | None = None
    learning_rate: float | None = None

    def __fspath__(self) -> str:
        return str(self.out)


def fit(
    recipe: Place | Recipe | None = None,
    *,
    trainer: Mapping[str, Any] | None = None,
    find_lr: bool = False,
    **keys: Any,
) -> Run:
    """Train a small image or text encoder by a recipe, or two that are trained already together.

    Any key of the recipe is a keyword, nested (`optimizer={"lr": 1e-3}`) or dotted (`**{"student.init": "teacher"}`);
    `clip-distill fit --help` lists them. What neither says, `preset` decides by the teacher and the amount of data:
    smallest, balanced (by default, without a recipe), best, or none. `tower`, `data`, `store` and `out` must be given,
    here or by the recipe. A loss, student, teacher or augmentation of your own is a class or function, or its name as
    `module:Attr`.

    Args:
        recipe: A YAML's path, the name of one that the package ships, or a `Recipe`; keywords override it.
        trainer: Arguments of Lightning's Trainer, such as `{"max_epochs": 10, "precision": "bf16-mixed"}`.
        find_lr: Search for a learning rate for 100 steps, and train nothing.
        keys: Keys of the recipe.

    Returns:
        The run, which `evaluate`, `export` and `load` take in a student's place.

    Raises:
        Error: A setting does not exist or does not fit, or the store or the data are not there.

    Example:
        >>> run = cd.fit(tower="text", data=DATA, store=STORE, out=OUT, trainer={"max_epochs": 1})
        >>> run.students["text"].name
        'student'
    """
    from clip_distill.train.fill import fill
    from clip_distill.train.settings import fit_parser

    base = {} if recipe is None else plain(recipe) if isinstance(recipe, Recipe) else read_recipe(recipe)
    given = layer({"trainer": trainer or {}, "find_lr": find_lr, **keys}, base)
    if lacking := [key for key in ("tower", "store", "out") if not given.get(key) and not given.get("start_from")]:
        raise InvalidValue(f"fit: expected {', '.join(f'{key}=…' for key in lacking)}, found none")
    parser = fit_parser()
    return train(parser, parse_keys(parser, filled(given, fill(given, recipe is not None))))


def command(argv: Sequence[str]) -> Run:
    """What `clip-distill fit` does; what can be told without torch is told before it is loaded."""
    from clip_distill.train.flags import as_fields, help_if_asked, require_places
    from clip_distill.train.settings import fit_parser

    argv = as_fields(argv)
    help_if_asked(argv, DESCRIPTION, EXAMPLES)
    given = require_places(argv)
    from clip_distill.train.fill import fill

    parser = fit_parser(DESCRIPTION, EXAMPLES)
    if settings := fill(given, "recipe" in given):
        parser.set_defaults(flat(settings))
    return train(parser, parser.parse_args(argv))


def train(parser: Parser, config: Any) -> Run:
    """Train by settings that were parsed.

    Raises:
        OutOfMemory: A GPU's memory is not enough for a batch.
    """
    from clip_distill.train.begin import first_students
    from clip_distill.train.learning_rate import find_lr
    from clip_distill.train.settings import to_recipe
    from clip_distill.train.stopping import Stopped
    from clip_distill.train.trainer import quiet_lightning

    recipe, trainer_options = to_recipe(parser, config)
    out = Path(recipe.out)
    if config.find_lr:
        quiet_lightning()
        module, data, _ = first_students(recipe, fresh=True)
        return Run(out, learning_rate=find_lr(module, data, trainer_options))
    with only_one(out / ".lock", str(out)) if is_first() else nullcontext():
        try:
            return train_in(out, recipe, trainer_options, parser, config)
        except Stopped as stopped:
            kept = f"the step is saved; go on with: {shown.command('fit', '--recipe', out / 'recipe.yaml', '--resume')}"
            raise ended_by(stopped.number, kept) from None


def train_in(out: Path, recipe: Recipe, trainer_options: dict[str, Any], parser: Parser, config: Any) -> Run:
    """Train in a folder that no other process writes to."""
    import torch

    from clip_distill.system.feed import named_failures
    from clip_distill.train.begin import first_students, load_weights, prepare_folder
    from clip_distill.train.go_on import as_it_began, progress_of, remember
    from clip_distill.train.out_of_memory import out_of_memory
    from clip_distill.train.settings import write_recipe
    from clip_distill.train.trainer import make_trainer, quiet_lightning

    last = prepare_folder(recipe, out)
    quiet_lightning()
    module, data, report = first_students(recipe, fresh=last is None and recipe.resume != "best")
    if recipe.resume == "best":
        load_weights(module, out / "checkpoints" / "best.ckpt")
    trainer, best, cost = make_trainer(recipe, trainer_options, out, module.validation.measure)
    if report is not None and trainer.is_global_zero:
        say(str(report))
    before = as_it_began(module) if recipe.start_from is not None else None
    if trainer.is_global_zero:
        write_recipe(parser, config, out)
        remember(module.validation, out)
    try:
        with named_failures():
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, module, recipe) from error
    if trainer_options.get("fast_dev_run") or not trainer.is_global_zero:
        return Run(out)
    say(str(cost))
    run = save_students(module, recipe, best, out)
    if before is not None and recipe.start_from is not None:
        say(*progress_of(module, before, data, Path(recipe.start_from), trainer.strategy.root_device))
    if recipe.report and module.validation.measure == "mean_recall":
        show(run, str(trainer.strategy.root_device))
    return run


def show(run: Run, device: str) -> None:
    """Write the page that `report` makes; a run has not failed where there can be none."""
    from clip_distill.verbs.report import report

    try:
        report([run], device=device)
    except Error as error:
        say(f"no report: {error}")


def save_students(module: Training, recipe: Recipe, best: ModelCheckpoint, out: Path) -> Run:
    """Write the best student, or both, beside the checkpoints, and say where."""
    import torch

    from clip_distill.towers.spec import count_parameters, save_tower

    if best.best_model_path:
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    recall = None if best.best_model_score is None else float(best.best_model_score)
    score = "" if recall is None else f", {module.validation.measure.replace('_', ' ')} {recall:.1f} %"
    students: dict[Tower, Path] = {}
    for name, spec, tower in module.towers(module.trained):
        folder = students[spec.tower] = out / "student" / name
        save_tower(folder, spec, tower)
        say(f"{folder}: {count_parameters(tower) / 1e6:.2f}M parameters{score}")
    where = ["--store", recipe.store, *(word for tower in students for word in (f"--{tower}_student", out))]
    data = [shown.command("evaluate", "--data", recipe.data, *where)] if recipe.data else []
    say(*(f"next: {line}" for line in [*data, shown.command("export", *where, "--out", out / "exported")]))
    return Run(out, students, recall)
