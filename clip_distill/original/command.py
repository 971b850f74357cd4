"""What `main.py` does: say which clip-distill commands it stands for, then run them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clip_distill.cli import main as cli
from clip_distill.original import trainer
from clip_distill.original.flags import STUDENT_FLAGS, make_parser, parse
from clip_distill.system.ends import Terminated, heed_sigterm, leave
from clip_distill.system.errors import AlreadyExists, InvalidValue, NotFound

HANDED = "CLIP_DISTILL_FIT"  # holds fit's arguments for the processes that Lightning starts by running main.py again


@dataclass
class Plan:
    """The commands, each as the arguments of `clip-distill`.

    Args:
        embed: Two at most.
        fit: The training.
        store: Where the embeddings lie.
        out: The run's folder.
        notes: What flags mean today.
        warnings: Where the run differs from what was asked for.
    """

    embed: list[list[str]]
    fit: list[str]
    store: str
    out: Path
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print it: the commands can be copied."""
        for warning in self.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print("main.py stands for:")
        for command in [*self.embed, self.fit]:
            print(f"  clip-distill {shlex.join(command)}")
        for note in self.notes:
            print(f"note: {note}")
        sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the original command line. Under DDP, Lightning runs it again for each further process: those only train."""
    if HANDED in os.environ and "LOCAL_RANK" in os.environ:
        cli.main(json.loads(os.environ[HANDED]))
        return
    heed_sigterm()
    try:
        options = parse(sys.argv[1:] if argv is None else argv, trainer.flags())
        try:
            plan = make_plan(options, trainer.count_gpus())
        except (ValueError, OSError) as error:
            make_parser().error(str(error))
        try:
            run(plan, options.output_dim)
        finally:
            with contextlib.suppress(OSError):
                plan.out.rmdir()  # claimed, but nothing came of it
    except (KeyboardInterrupt, Terminated) as end:
        leave("fit", end)


def run(plan: Plan, output_dim: int) -> None:
    """Embed what the store lacks, then train."""
    from clip_distill.store.ensemble import open_table
    from clip_distill.train.settings import fit_parser

    plan.show()
    fit_parser().parse_args(plan.fit[1:])  # a wrong value should not wait for the teacher to end
    for command in plan.embed:
        cli.main(command)
    width = open_table(plan.store, "image", "val").manifest.dim
    if width != output_dim:
        print(f"note: --output_dim {output_dim}: the student's width is its teacher's, {width}", flush=True)
    os.environ[HANDED] = json.dumps(plan.fit)
    try:
        cli.main(plan.fit)
    finally:
        del os.environ[HANDED]


def make_plan(options: Namespace, gpus: int) -> Plan:
    """Map the flags onto commands, and claim the run's folder.

    Args:
        options: What `parse` gives.
        gpus: How many there are.

    Raises:
        ValueError: Flags contradict each other or no longer exist, or another program has started several processes.
        OSError: There is no run to go on with, or the folder of `--version` holds one.
    """
    from clip_distill.store.build import process_rank

    if process_rank()[1] > 1:
        raise InvalidValue(
            "expected one process, found several (torchrun or srun): with --strategy=ddp --gpus=0,1 main.py starts its "
            "own. Or run the commands that it prints under torchrun: torchrun … -m clip_distill fit …"
        )
    checkpoint = options.trainer.pop("resume_from_checkpoint", None)
    modern = trainer.translate(options.trainer, options.gpus, options.device, gpus)
    resumed = resumed_run(options, checkpoint)
    store = store_folder(options)
    flags = recipe_flags(options) | {f"trainer.{name}": value for name, value in modern.arguments.items()}
    online = options.tower == "image" and not options.no_augment
    embed = embed_commands(options, store, online, gpus)
    out = resumed or new_run(options)
    if resumed:
        flags["resume"] = True
        modern.notes.append(f"goes on from the last checkpoint in {out}; its best student is {out / 'student'}")
    places = {"tower": options.tower, "data": options.data_dir, "store": store, "out": str(out)}
    fit = ["fit", *_as_words(places | flags), "--preset", "none"]
    return Plan(embed, fit, store, out, modern.notes + notes(options, online), modern.warnings)


def recipe_flags(options: Namespace) -> dict[str, Any]:
    """Keys of the recipe that are not at its defaults."""
    from clip_distill.recipe import Recipe
    from clip_distill.store.manifest import flatten

    wanted: dict[str, Any] = {
        "seed": options.seed,
        "loss.names": options.loss,
        "loss.weights": options.weight,
        "loss.scales": options.loss_scale if set(options.loss_scale) != {1.0} else None,
        "optimizer.lr": options.lr,
        "optimizer.weight_decay": options.weight_decay,
        "optimizer.warmup": 0.0,
        "optimizer.schedule": options.lr_scheduler,
        "loader.batch_size": options.batch_size,
        "loader.workers": options.num_workers,
    }
    if options.lr_scheduler == "step":
        wanted |= {"optimizer.step_epochs": options.lr_decay_steps, "optimizer.step_gamma": options.lr_decay_rate}
    else:
        wanted["optimizer.min_lr"] = options.lr_decay_min_lr / options.lr
    if options.tower == "image" and not options.no_augment:
        wanted |= {"target": "online", "teacher": options.teacher_name, "augment": "original"}
    defaults = flatten(asdict(Recipe(options.tower, None, "", "")))
    flags = {key: value for key, value in wanted.items() if value != defaults[key]}
    plain = make_parser().get_default
    if "kl" in options.loss and options.t != plain("t"):
        flags["loss.options"] = {"kl": {"temperature": options.t}}
    student = {name: getattr(options, name) for name in STUDENT_FLAGS[options.tower]}
    return flags | {f"student.options.{name}": value for name, value in student.items() if value != plain(name)}


def embed_commands(options: Namespace, store: str, online: bool, gpus: int) -> list[list[str]]:
    """The store's validation tables; and the own tower's training table, unless the teacher runs at every step."""
    from clip_distill.system.cores import default_workers

    base: dict[str, Any] = {"data": options.data_dir, "teacher": options.teacher_name, "store": store}
    workers = default_workers() if options.num_workers is None else options.num_workers
    where: dict[str, Any] = {"workers": workers} if workers != 1 else {}  # embed's default
    if options.device != "cuda":
        where["device"] = options.device
    elif gpus and options.gpus and options.gpus[0] > 0:
        where["device"] = f"cuda:{options.gpus[0]}"
    parts: list[dict[str, Any]] = [{"split": "val"}]
    if not online:
        other = "text" if options.tower == "image" else "image"
        parts = [{"tower": options.tower}, {"tower": other, "split": "val"}]
    return [["embed", *_as_words(base | part | where)] for part in parts]


def store_folder(options: Namespace) -> str:
    """CACHE_DIR/teacher-hash: one store for each pair of data and teacher, whatever paths lead to them."""
    from clip_distill.system import paths

    teacher, name = options.teacher_name, options.teacher_name
    if teacher.startswith("local-dir:"):
        teacher = os.path.realpath(teacher.removeprefix("local-dir:"))
        name = os.path.basename(teacher)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    made_of = f"{paths.real_path(options.data_dir)}\n{teacher}"
    return os.path.join(options.cache_dir, f"{slug}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}")


def new_run(options: Namespace) -> Path:
    """SAVE_DIR/NAME/version_K, made at once, so that no other run takes it.

    Raises:
        FileExistsError: `--version` names a folder with a run in it.
    """
    base = Path(options.save_dir) / (options.name or options.model_name)
    if options.version is not None:
        folder = base / f"version_{options.version}"
        if (folder / "checkpoints").exists():
            raise AlreadyExists(
                f"--version {options.version}: {folder} holds a run. Leave --version out for the next free number, "
                f"or go on with that run: --load_dir {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    taken = [path.name.removeprefix("version_") for path in base.glob("version_*")]
    number = max([int(name) for name in taken if name.isdecimal()], default=-1) + 1
    while True:
        folder = base / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def resumed_run(options: Namespace, checkpoint: str | None) -> Path | None:
    """The run that --load_dir, --load_ver, --load_v_num or --resume_from_checkpoint names; None for a new one.

    Raises:
        FileNotFoundError: It has no checkpoint to go on from.
    """
    if checkpoint is None and options.load_dir is None and options.load_ver is None and options.load_v_num is None:
        return None
    below = options.load_ver or (f"version_{options.load_v_num}" if options.load_v_num is not None else "")
    root = checkpoint or options.load_dir or os.path.join(options.save_dir, options.name or options.model_name)
    folder = Path(root) / below
    folder = folder.parent if folder.suffix == ".ckpt" else folder
    folder = folder.parent if folder.name == "checkpoints" else folder
    if not (folder / "checkpoints/last.ckpt").is_file():
        raise NotFound(
            f"{folder}: expected a run to go on with (checkpoints/last.ckpt), found none. --load_dir takes a run's "
            "folder; --load_ver and --load_v_num one below SAVE_DIR/NAME"
        )
    return folder


def notes(options: Namespace, online: bool) -> list[str]:
    """What given flags mean today, where that is not what they meant."""
    plain = make_parser().get_default
    other = STUDENT_FLAGS["text" if options.tower == "image" else "image"]
    meaning = {
        "log_dir": "logs lie in the run's folder, logs/ (TensorBoard and CSV)",
        "cache_dir": "holds the store: the teacher's embeddings of this data, made once for all runs",
        "aug_prob": "the augmentation keeps its own probabilities: flips half the time, always a rotation up to 30°",
        "load_best": "runs go on from the last checkpoint; the best student is the one that a run leaves in student/",
    }
    meaning |= {name: f"is no option of the {options.tower} student" for name in other}
    if options.lr_scheduler == "step":
        meaning["lr_decay_min_lr"] = "belongs to --lr_scheduler cosine"
    else:
        meaning |= {"lr_decay_steps": "the cosine falls once, over the whole run", "lr_decay_rate": "belongs to step"}
    if "kl" not in options.loss:
        meaning["t"] = "is the temperature of kl, which is not among the losses"
    if options.tower == "text":
        meaning |= {"no_augment": "captions are never augmented", "aug_prob": "captions are never augmented"}
    lines = [f"--{name}: {text}" for name, text in meaning.items() if getattr(options, name) != plain(name)]
    if online:
        lines.append(
            "images are augmented and the teacher runs at every step, as originally (--target online); stored targets, "
            "by --no_augment, are far faster"
        )
    return lines


def _as_words(flags: dict[str, Any]) -> list[str]:
    """`--key value` for each; `--key=value` where the value would look like a flag."""
    words = []
    for key, value in flags.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]
    return words
