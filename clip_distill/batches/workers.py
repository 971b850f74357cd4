"""How many processes render photos while the student trains: the fewest that keep up, by measure.

The number changes no batch, so a measure that comes out otherwise next time changes no result.
Shapes: B batch, S image side.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clip_distill.pixels.views import normalise
from clip_distill.system.cores import cores

if TYPE_CHECKING:
    from clip_distill.batches.datasets import Images

SPARE = 1.25  # workers for so many times the student's rate: photos differ, and so do moments
HIDDEN = 0.01  # a loader that takes this share of a step needs no worker
RENDER_SECONDS, STEP_SECONDS = 0.4, 0.2


class Choice(NamedTuple):
    """How many workers, and why.

    Args:
        workers: Processes.
        wanted: How many it would take to keep up; more than `workers` where the cores are too few.
        render: Seconds for one core to bring a photo.
        step: Seconds of the student's step for each photo.
    """

    workers: int
    wanted: int
    render: float
    step: float

    def __str__(self) -> str:
        name = "worker" if self.workers == 1 else "workers"
        times = f"a photo takes {1e3 * self.render:.2f} ms to bring, {1e3 * self.step:.2f} ms to train on"
        lack = f"; {self.wanted} would keep up: try --loader.packed DIR" if self.wanted > self.workers else ""
        return f"loader: {self.workers} {name} ({times}{lack})"


def measure(images: Images, view: int, batch_size: int, trainer: Any) -> Choice:
    """Choose for a training that is about to begin.

    Args:
        images: What it trains on.
        view: One of those that it will ask for.
        batch_size: Of a step.
        trainer: Lightning's, with its `Distiller`.
    """
    distiller, device = trainer.lightning_module, trainer.strategy.root_device
    rows = np.random.default_rng(0).permutation(len(images))
    items = np.stack([rows, np.full_like(rows, view)], axis=1)
    some = images[items[:8]].inputs

    def prepare(pixels: Tensor) -> Tensor:
        if distiller.teach is not None:
            distiller.teach(pixels)
        # what frozen stages made of photos is no picture any more
        return pixels.float() if distiller.reads_features else normalise(pixels, distiller.spec.preprocess)

    context = trainer.precision_plugin.forward_context
    return choose(
        render_seconds(lambda number: images[items[number : number + 1]], len(items)),
        step_seconds(distiller.student, prepare, some, batch_size, device, context),
        cores_for(trainer.num_devices, device),
    )


def choose(render: float, step: float, cores: int) -> Choice:
    """The fewest workers that bring photos as fast as the student takes them; at most one for each core.

    Args:
        render: Seconds for one core to bring a photo.
        step: Seconds of the student's step for each photo.
        cores: That this process may use for it.
    """
    wanted = 0 if render <= HIDDEN * step else math.ceil(SPARE * render / step)
    return Choice(min(wanted, max(1, cores)), wanted, render, step)


def render_seconds(bring: Callable[[int], Any], most: int) -> float:
    """Seconds to bring a photo, here and now.

    Args:
        bring: Brings the nth of the photos.
        most: How many there are.
    """
    bring(0)  # the first one opens files, and imports decoders
    count, began = 0, time.perf_counter()
    while count == 0 or (count < most and time.perf_counter() - began < RENDER_SECONDS):
        bring(count)
        count += 1
    return (time.perf_counter() - began) / count


def step_seconds(
    student: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    pixels: Tensor,
    batch_size: int,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Seconds for each photo of a copy of the student, forward and backward; the batch grows until that takes a while.

    Neither the student nor the state of a random generator changes, and nothing is compiled for it.

    Args:
        student: Pixels as `prepare` makes them → [B, D].
        prepare: What a step does before the student: normalise, run the online teacher.
        pixels: uint8 [B, 3, S, S], a few photos; repeated to make a batch.
        batch_size: Of the training.
        device: Of the training.
        context: Makes the context of a forward pass, for mixed precision.
    """
    student = copy.deepcopy(student).to(device).train()

    def step(batch: Tensor) -> float:
        began = time.perf_counter()
        with context():
            embeddings = student(prepare(batch))
        embeddings.float().square().mean().backward()
        student.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    devices = [device] if device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        if device.type == "cuda":
            step(pixels[:2].to(device))  # starts CUDA and loads its kernels, which takes longer than any step
        size = min(2, batch_size)  # a batch norm can't train on one
        while True:
            batch = pixels.repeat(-(-size // len(pixels)), 1, 1, 1)[:size].to(device)
            taken = step(batch)
            if taken < 2 * STEP_SECONDS:
                taken = step(batch)  # the first one of a size warms up
            if taken > STEP_SECONDS or size >= batch_size:
                return taken / size
            size = min(4 * size, batch_size)


def cores_for(processes: int, device: torch.device) -> int:
    """Cores that one of this machine's training processes has for its workers: one less where it trains on cores."""
    return max(1, cores() // max(1, processes) - (device.type == "cpu"))
