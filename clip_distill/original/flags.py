"""Flags of the original command line, with its defaults; lists are read as people write them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

EXAMPLES = """\
examples:
  # image encoder, four GPUs; then text encoder, GPU number 0
  python main.py --data_dir D --strategy=ddp --gpus=0,1,2,3 --precision=16 --max_epochs=100 \\
    --dataset=image_dataset --model_name=model_image_distilled
  python main.py --data_dir D --gpus=0 --precision=16 --max_epochs=100 \\
    --dataset=text_dataset --model_name=model_text_distilled
  # one stored embedding an image, which is far faster than the teacher at every step; a teacher from a folder
  python main.py --data_dir D --gpus=0 --no_augment --teacher_name local-dir:my_clip
  # losses, with a weight each; any argument of Lightning's Trainer
  python main.py --data_dir D --gpus=0 --loss l1 cosine --weight 0.2 0.8 --accumulate_grad_batches 2

The clip-distill commands that the run stands for are printed first."""

TOWER_OF = {
    "image_dataset": "image",
    "text_dataset": "text",
    "model_image_distilled": "image",
    "model_text_distilled": "text",
}
STUDENT_FLAGS = {
    "image": ("input_resolution", "patch_size", "width", "layers", "heads"),
    "text": ("context_length", "vocab_size", "transformer_width", "transformer_layers", "transformer_heads"),
}


class Words(argparse.Action):
    """A list of names: `a b c`, `a,b,c`, `[a, b, c]` and `"['a', 'b']"` are the same."""

    convert: Callable[[str], Any] = str
    what = "names"

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        words = [word for word in re.split(r"[\s,\[\]()'\"]+", " ".join(values)) if word]
        try:
            items = [type(self).convert(word) for word in words]
        except ValueError:
            items = []
        if not items:
            raise argparse.ArgumentError(self, f"expected {self.what}, as in 'a b', 'a,b' or '[a, b]'; found {values}")
        setattr(namespace, self.dest, items)


class Numbers(Words):
    """A list of numbers, as `Words`."""

    convert, what = float, "numbers"


class WholeNumbers(Words):
    """A list of whole numbers, as `Words`."""

    convert, what = int, "whole numbers"


def make_parser() -> argparse.ArgumentParser:
    """All flags of the original but the Trainer's."""
    parser = argparse.ArgumentParser(
        "main.py",
        usage="main.py --data_dir D --gpus=0 --dataset=… --model_name=… [--FLAG VALUE …] (--help lists all)",
        description="Distil a CLIP-like teacher into a small image or text encoder, by the original command line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", default="image_dataset", choices=["image_dataset", "text_dataset"])
    add("--model_name", default="model_image_distilled", choices=["model_image_distilled", "model_text_distilled"])
    add("--data_dir", default="/path/to/data", help="folder with image/, COCO/ and CC/")
    add("--teacher_name", default="ViT-B/32", help="ViT-B/32, ViT-B-32/openai, local-dir:PATH, hf-hub:ORG/REPO, …")
    add("--no_augment", action="store_true", help="images as they are, taught by stored embeddings")
    add("--aug_prob", type=float, default=0.5)
    add("--gpus", action=WholeNumbers, nargs="+", help="numbers of the GPUs: 0 is the first; -1 is all")
    add("--device", default="cuda", help="cpu, cuda or cuda:N")
    add("--seed", type=int, default=2023)
    add("--batch_size", type=int, default=64, help="per GPU")
    add("--num_workers", type=int, help="processes that prepare batches; by default what suits the machine, 8 at most")
    add("--cache_dir", default="cache", help="where the teacher's embeddings are kept")
    _add_folders(parser)
    _add_training(parser)
    for name, default in (("input_resolution", 224), ("patch_size", 32), ("width", 576), ("layers", 6), ("heads", 24)):
        add(f"--{name}", type=int, default=default, help="of the image student")
    text = {"context_length": 77, "vocab_size": 49408}
    text |= {"transformer_width": 128, "transformer_layers": 6, "transformer_heads": 8}
    for name, default in text.items():
        add(f"--{name}", type=int, default=default, help="of the text student")
    add("--output_dim", type=int, default=512, help="no longer needed: the student's width is its teacher's")
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--save_dir", default="./checkpoint", help="the run goes to SAVE_DIR/NAME/version_VERSION")
    add("--name", help="by default the model's name")
    add("--version", type=int, help="by default the next free number")
    add("--log_dir", default="runs")
    add("--load_dir", help="go on with the run in this folder")
    add("--load_ver", help="go on with the run in this folder below SAVE_DIR/NAME, or below LOAD_DIR")
    add("--load_v_num", type=int, help="the same for version_LOAD_V_NUM")
    add("--load_best", action="store_true")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--lr", type=float, default=1e-3)
    add("--weight_decay", type=float, default=1e-5)
    add("--lr_scheduler", default="step", choices=["step", "cosine"])
    add("--lr_decay_steps", type=int, default=10, help="epochs between two steps of the step schedule")
    add("--lr_decay_rate", type=float, default=0.5, help="factor of each step")
    add("--lr_decay_min_lr", type=float, default=1e-5, help="where the cosine schedule ends")
    add("--loss", action=Words, nargs="+", default=["kl", "l1", "ce"], help="names: kl l1 ce, or any other of fit's")
    add("--weight", action=Numbers, nargs="+", default=[0.6, 0.35, 0.05], help="one number per loss")
    add("--loss_scale", action=Numbers, nargs="+", help="one number per loss; by default 1 each")
    add("--t", type=float, default=4.0, help="temperature of kl")


def parse(argv: Sequence[str], trainer_flags: Sequence[str]) -> argparse.Namespace:
    """Read a command line; mistakes end the program with a message, as argparse does.

    Args:
        argv: Without the program's name.
        trainer_flags: Names that are handed on as they are written.

    Returns:
        Every flag by its name; `tower`; and `trainer`, the given flags of `trainer_flags` as strings, "true" where no
        value follows. `loss_scale` is as long as `loss`.
    """
    parser = make_parser()
    group = parser.add_argument_group("arguments of Lightning's Trainer, of today or of its first version")
    names = [name for name in trainer_flags if f"--{name}" not in parser._option_string_actions]
    for name in names:
        group.add_argument(
            f"--{name}", nargs="?", const="true", default=argparse.SUPPRESS, dest=f"trainer.{name}", metavar="VALUE"
        )
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_explain(unknown[0], list(parser._option_string_actions)))
    given = vars(options)
    options.trainer = {name: given.pop(f"trainer.{name}") for name in names if f"trainer.{name}" in given}
    _check(parser, options)
    options.tower = TOWER_OF[options.dataset]
    return options


def _explain(word: str, known: Sequence[str]) -> str:
    name = word.split("=", 1)[0]
    if not name.startswith("-"):
        return f"unexpected {word!r}: expected --NAME VALUE or --NAME=VALUE"
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    return (
        f"unknown argument {name}: the nearest known one is {near}. Expected a flag of the original (main.py --help) "
        "or an argument of Lightning's Trainer"
    )


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message where flags contradict each other."""
    if TOWER_OF[options.dataset] != TOWER_OF[options.model_name]:
        right = f"model_{TOWER_OF[options.dataset]}_distilled"
        parser.error(
            f"--dataset {options.dataset} goes with --model_name {right}, found --model_name {options.model_name}"
        )
    if options.loss_scale is None:
        options.loss_scale = [1.0] * len(options.loss)
    if not len(options.loss) == len(options.weight) == len(options.loss_scale):
        parser.error(
            f"--loss, --weight and --loss_scale go together, one number per loss: found {len(options.loss)} losses "
            f"{options.loss}, {len(options.weight)} weights {options.weight} and {len(options.loss_scale)} scales "
            f"{options.loss_scale}"
        )
