"""Whether a student that went on became better: on the rows it was measured by before, and on those that came since.

Shapes: N validation rows, B batch, D embedding.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clip_distill.evaluation.holdout import HeldOut
from clip_distill.system.files import read_json, write_json

if TYPE_CHECKING:
    from clip_distill.batches.loader import DistillData
    from clip_distill.train.training import Training

HELD_OUT = "held_out.json"  # in a run's folder: the ids of the rows that it was measured by
LEAST = 2  # rows that tell anything


@torch.inference_mode()
def embedded(module: Training, tower: nn.Module, data: DistillData, device: torch.device) -> Tensor:
    """[N, D] of the validation rows, by a tower that is built as the one in training."""
    tower = tower.to(device).eval()
    (_, spec, _), *_ = module.towers(module.trained)
    whole: Tensor | None = None
    for batch in data.in_order(data.val, {"batch_size": None}):
        found = module.embed(spec, tower, batch.inputs.to(device)).float().cpu()
        whole = found.new_zeros(len(data.val), found.shape[1]) if whole is None else whole
        whole[batch.rows.cpu()] = found
    assert whole is not None
    return whole


def as_it_began(module: Training) -> nn.Module:
    """A copy of the student, to be compared with later."""
    return copy.deepcopy(module.student).requires_grad_(False)


def progress_of(module: Training, before: nn.Module, data: DistillData, start: Path, device: torch.device) -> list[str]:
    """Lines that say how the student did before and after, and what to do if it became worse.

    Args:
        module: With the best weights.
        before: What `as_it_began` gave.
        data: What it was validated on.
        start: The run that it went on from.
        device: To compute on.
    """
    one, other = (embedded(module, each, data, device) for each in (before, module.trained))
    validation = module.validation
    name = validation.measure.replace("_", " ")
    if not isinstance(validation, HeldOut):
        first, second = (validation.metrics(each)[validation.measure] for each in (one, other))
        return [_line("validation", len(validation.own), name, first, second), _verdict(start, [second - first])]
    known = set(read_json(start / HELD_OUT)["ids"]) if (start / HELD_OUT).is_file() else set()
    old = torch.tensor([id in known for id in validation.ids])
    lines, gains = [], []
    for what, rows in (("rows held out before", old), ("rows held out since", ~old)):
        if int(rows.sum()) < LEAST:
            lines.append(f"{what}: {int(rows.sum())}, too few to compare")
            continue
        part = HeldOut(validation.own[rows])
        first, second = (part.metrics(each[rows])[validation.measure] for each in (one, other))
        lines.append(_line(what, int(rows.sum()), name, first, second))
        gains.append(second - first)
    return [*lines, _verdict(start, gains)]


def _line(what: str, rows: int, name: str, first: float, second: float) -> str:
    return f"{what} ({rows:,}): {name} {first:.1f} % before, {second:.1f} % now"


def _verdict(start: Path, gains: list[float]) -> str:
    if not gains:
        return "nothing to compare"
    if all(gain >= 0 for gain in gains):
        return "better than before" if any(gain > 0 for gain in gains) else "as good as before"
    where = "on some of them" if any(gain > 0 for gain in gains) else "now"
    return f"worse {where}: keep {start}, or go on for longer (--trainer.max_epochs, --optimizer.lr)"


def remember(validation: object, out: Path) -> None:
    """Write down which rows a run is measured by, for one that goes on from it."""
    if isinstance(validation, HeldOut):
        write_json(out / HELD_OUT, {"ids": list(validation.ids)})
