"""`clip-distill fit`: train a student by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.cli.parsing import new_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch import nn

    from clip_distill.batches.datasets import DistillData
    from clip_distill.recipe import Recipe
    from clip_distill.towers.spec import TowerSpec
    from clip_distill.train.training import Training

EXAMPLES = """\
  # a recipe as it is, on your data and store
  clip-distill fit --recipe recipes/flickr8k_text.yaml --data DATA --store stores/b32 --out runs/text
  # any key of the recipe, and any argument of Lightning's Trainer, is a flag
  clip-distill fit --recipe recipes/flickr8k_text.yaml --student.options.transformer_width 64 --optimizer.lr 2e-3 \\
    --loss.names '[cosine, gram_kl]' --trainer.max_epochs 5 --trainer.precision bf16-mixed
  # no recipe at all: the default ViT on all GPUs
  clip-distill fit --tower image --data DATA --store stores/b32 --out runs/image --trainer.strategy ddp
  # start from the teacher's own weights, cut to the student's size
  clip-distill fit --recipe recipes/flickr8k_text.yaml --student.init teacher --student.vocabulary corpus
  # a long run on small images: mixup, an average of the weights, a stem and two stages that keep the teacher's weights
  clip-distill fit --recipe recipes/flickr8k_image.yaml --mixup 0.2 --ema 0.999 --student.freeze 2
  # a learning rate from 100 steps, before the run
  clip-distill fit --recipe recipes/flickr8k_text.yaml --find_lr
  # go on after an interruption
  clip-distill fit --recipe runs/text/recipe.yaml --resume
  # both students together, after each was distilled: on pairs, by what they keep of the teacher and of each other
  clip-distill fit --tower both --data DATA --store stores/b32 --image_student runs/image --text_student runs/text \\
    --out runs/both --optimizer.lr 1e-4 --loss.between '{both_affinity: 1.0, both_infonce: 0.1}'
  # a loss of your own: class MyLoss in my_loss.py, called with student and target [B, D]
  clip-distill fit --recipe recipes/flickr8k_text.yaml --loss.names '["my_loss:MyLoss"]'"""

TRAINER_DEFAULTS = {
    "max_epochs": 10,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
}


def parser() -> ArgumentParser:
    """The recipe's keys and the Trainer's arguments, from a YAML and from flags."""
    from clip_distill.recipe import Recipe

    result = new_parser(
        "fit", "Train a small image or text encoder by a recipe, or two that are trained already together.", EXAMPLES
    )
    result.add_argument("--recipe", action="config", help="YAML with any of the keys below; flags override it")
    result.add_class_arguments(Recipe, as_group=False)
    result.add_argument(
        "--find_lr",
        type=bool,
        default=False,
        help="search for a learning rate for 100 steps, say it, and train nothing",
    )
    add_trainer(result)
    return result


def add_trainer(parser: ArgumentParser) -> None:
    """Give a parser the arguments of Lightning's Trainer, with `fit`'s defaults."""
    from lightning.pytorch import Trainer

    # rows are shared out by our own sampler, and where checkpoints and logs go is `out`'s business
    parser.add_class_arguments(
        Trainer, "trainer", instantiate=False, skip={"use_distributed_sampler", "default_root_dir"}
    )
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})


def main(argv: list[str]) -> None:
    from clip_distill.train.learning_rate import find_lr
    from clip_distill.train.trainer import make_trainer, quiet_lightning

    arguments = parser()
    config = arguments.parse_args(argv)
    recipe, trainer_options = to_recipe(arguments, config)
    out = Path(recipe.out)
    last = None if config.find_lr else prepare_folder(recipe, out)
    quiet_lightning()
    if recipe.tower == "both":
        (module, data), report = both_students(recipe), None
    else:
        module, data, report = new_student(recipe, fresh=last is None)
    if config.find_lr:
        find_lr(module, data, trainer_options)
        return
    trainer, best, cost = make_trainer(recipe, trainer_options, out)
    if report is not None and trainer.is_global_zero:
        print(report)
    if trainer.is_global_zero:
        write_recipe(arguments, config, out)
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    if trainer.is_global_zero and not trainer_options.get("fast_dev_run"):
        print(cost)
        save_students(module, trainer, best, out)


def new_student(recipe: Recipe, fresh: bool) -> tuple[Training, DistillData, Any]:
    """A student with its first weights, its data, and what it took from the teacher, if anything.

    Args:
        recipe: The run.
        fresh: Whether it begins; a resumed run has weights.
    """
    import lightning as L

    from clip_distill.batches.features import pack_features
    from clip_distill.students.inherit import inherit
    from clip_distill.train.assemble import assemble, in_own_tokens
    from clip_distill.train.head import solve_head

    online, teach = online_target(recipe)
    cuts = recipe.student.init == "teacher" and fresh
    source = ((online.spec, teach.module) if online else checked_teacher(recipe)) if cuts else None
    L.seed_everything(recipe.seed, workers=True, verbose=False)  # after the teacher, whose making draws numbers too
    module, data = assemble(recipe, online, teach)
    report = None
    if source is not None:
        source = in_own_tokens(module.spec, data, source)
        report = inherit(module.spec, module.student, source[0], source[1], recipe.student.select)
        source = None  # training needs no teacher
    module.prepare(recipe)
    if recipe.loader.features is not None:
        pack_features(recipe.loader.features, module, data)
    if recipe.student.probe and fresh:
        solve_head(module, data, recipe.student.probe)
    return module, data, report


def both_students(recipe: Recipe) -> tuple[Training, DistillData]:
    """For `tower: both`, the two students that the recipe names, and pairs.

    Raises:
        ValueError: A student is of another teacher than the store.
    """
    import lightning as L

    from clip_distill.evaluation.loading import load_student, require_taught_by, teacher_of_store
    from clip_distill.towers.spec import TOWERS
    from clip_distill.train.assemble_both import assemble_both

    students, teacher = {}, teacher_of_store(recipe.store)
    for tower, name in zip(TOWERS, (recipe.image_student, recipe.text_student), strict=True):
        assert name is not None
        students[tower] = load_student(name, tower)
        require_taught_by(f"{tower}_student {name}", students[tower][0], teacher)
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    module, data = assemble_both(recipe, students)
    module.prepare(recipe)
    return module, data


def to_recipe(arguments: ArgumentParser, config: Any) -> tuple[Recipe, dict[str, Any]]:
    """The typed recipe, and the Trainer's arguments with their callbacks and loggers built."""
    from dataclasses import fields

    from clip_distill.recipe import Recipe

    built = arguments.instantiate(config)
    return Recipe(**{each.name: built[each.name] for each in fields(Recipe)}), dict(built["trainer"].as_dict())


def prepare_folder(recipe: Recipe, out: Path) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start; a folder with another run in it is an error.

    Raises:
        FileExistsError: `out` holds a run, and neither resume nor overwrite is given.
    """
    from lightning.pytorch.utilities import rank_zero_only

    last = out / "checkpoints" / "last.ckpt"
    if recipe.resume:
        if last.is_file():
            return last
        print(f"{out}: nothing to resume from (no {last}); starting anew")
        return None
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    if (out / "checkpoints").exists() and not recipe.overwrite:
        raise FileExistsError(
            f"{out} holds a run. Use --resume to go on with it, --overwrite to replace it, or another --out"
        )
    if recipe.overwrite:
        import shutil

        for part in ("checkpoints", "logs", "student"):
            shutil.rmtree(out / part, ignore_errors=True)
    return None


def online_target(recipe: Recipe) -> tuple[Any, Any]:
    """For `target: online`, the teacher, checked against the store that validates; else (None, None).

    Raises:
        StoreError: The teacher is not the one that made the store.
    """
    if recipe.target == "stored":
        return None, None
    from clip_distill.train.assemble import OnlineTarget
    from clip_distill.train.online import OnlineTeacher

    spec, module = checked_teacher(recipe)
    return OnlineTarget(spec, recipe.augment), OnlineTeacher(spec, module)


def checked_teacher(recipe: Recipe) -> tuple[TowerSpec, nn.Module]:
    """The recipe's teacher, or the store's; it must be the one that made the store.

    Raises:
        StoreError: It is another one, or the store was made by several.
    """
    from clip_distill.store.ensemble import open_table
    from clip_distill.store.table import StoreError, require_same, teacher_fingerprint
    from clip_distill.teachers import load_teacher

    store = open_table(recipe.store, recipe.tower, "val")
    if "ensemble" in store.manifest.teacher:
        several = ", ".join(store.manifest.teacher["ensemble"])
        raise StoreError(
            f"{recipe.store}: expected one teacher to load, found several ({several}). Use --target stored and "
            "--student.init random"
        )
    name = recipe.teacher or store.manifest.teacher["name"]
    spec, module = load_teacher(name, recipe.one)
    expected, found = teacher_fingerprint(store.manifest.teacher), teacher_fingerprint(spec.teacher)
    require_same(
        f"teacher {name!r}",
        expected,
        found,
        "Give --teacher the one that made the store, or make a store with this one.",
    )
    return spec, module


def write_recipe(arguments: ArgumentParser, config: Any, out: Path) -> None:
    """The complete recipe of the run, which `fit --recipe` takes again."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = config.clone()
    for key in ("recipe", "find_lr"):
        chosen.pop(key, None)
    for key in ("resume", "overwrite"):
        chosen[key] = False
    aside = out / ".recipe.yaml.tmp"
    aside.write_text(arguments.dump(chosen, skip_unset=True), encoding="utf-8")
    aside.replace(out / "recipe.yaml")


def save_students(module: Training, trainer: Trainer, best: ModelCheckpoint, out: Path) -> None:
    """Write the best student, or both, beside the checkpoints, and say where."""
    import torch

    from clip_distill.towers.spec import count_parameters, save_tower

    path = best.best_model_path
    if path:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    score = f", mean recall {float(best.best_model_score):.1f} %" if best.best_model_score is not None else ""
    flags = []
    for name, spec, tower in module.towers(module.trained):
        folder = out / "student" / name
        save_tower(folder, spec, tower)
        print(f"{folder}: {count_parameters(tower) / 1e6:.2f}M parameters{score}")
        flags.append(f"--{spec.tower}_student {out}")
    print(f"next: clip-distill evaluate {' '.join(flags)} …, clip-distill export …")
