"""The learning-rate range test, `clip-distill fit --find_lr`: a short search before a long run."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.tuner.tuning import Tuner

from clip_distill.system.talk import say
from clip_distill.train.trainer import quiet_lightning

if TYPE_CHECKING:
    from clip_distill.batches.loader import DistillData
    from clip_distill.train.training import Training

LEAST, MOST, STEPS = 1e-5, 1e-1, 100
WINDOW = 10  # steps
SHOWN = 10  # lines of the table


def find_lr(module: Training, data: DistillData, options: dict[str, Any]) -> float | None:
    """Train for up to 100 steps while the rate grows from 1e-5 to 0.1; print loss by rate, and the steepest descent.

    The test of Smith, 2017 (arXiv:1506.01186), by Lightning's tuner. It writes nothing, and keeps nothing of what the
    student learnt.

    Args:
        module: The student to be, with its first weights.
        data: Its batches.
        options: The Trainer's.

    Returns:
        The rate at which the smoothed loss fell fastest, or None where it never fell.
    """
    own = {"logger": False, "enable_checkpointing": False, "callbacks": None, "use_distributed_sampler": False}
    quiet_lightning(entirely=True)  # it reports what it restores
    with TemporaryDirectory() as folder:
        trainer = Trainer(**{**options, **own, "default_root_dir": folder})
        finder = Tuner(trainer).lr_find(module, data, min_lr=LEAST, max_lr=MOST, num_training=STEPS, update_attr=False)
    if finder is None or not trainer.is_global_zero:
        return None
    rates, losses = finder.results["lr"], finder.results["loss"]
    say("learning rate  loss (smoothed)")
    for place in range(0, len(losses), max(1, len(losses) // SHOWN)):
        say(f"{rates[place]:13.1e}  {losses[place]:.4f}")
    rate = steepest(rates, losses)
    if rate is None:
        say("the loss never fell: look at the losses and targets, or train for more steps (--trainer.max_epochs)")
    else:
        say(f"the loss fell fastest at {rate:.1e}: --optimizer.lr {rate:.1e}")
    return rate


def steepest(rates: list[float], losses: list[float]) -> float | None:
    """The middle of the ten steps over which the loss fell most; the first ten, still unsettled, don't count.

    Lightning's own suggestion goes by single steps, and picks their noise: a tenth of the rate that one reads off.
    """
    settled = np.array(losses[WINDOW:])
    falls = settled[:-WINDOW] - settled[WINDOW:]
    if not len(falls) or falls.max() <= 0:
        return None
    return float(rates[WINDOW + int(falls.argmax()) + WINDOW // 2])
