"""One variant of a tower in a process of its own: what is asked for, what comes back, and the clock and scales for it.

`start` of `in_torch` or `in_onnx` loads it there and keeps it; then it waits for its turns.

Shapes: B batch, N rows, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

TURN_SECONDS = 0.5  # a turn ends after this, once a pass was timed

Array = NDArray[Any]
T = TypeVar("T")


class Case(NamedTuple):
    """A shape to time: `tokens` is a text's length, None for images."""

    batch: int
    tokens: int | None


@dataclass(frozen=True)
class Job:
    """One variant of one tower.

    Args:
        runtime: eager, compile, onnx or onnx-int8.
        model: Folder of a tower for torch, file for ONNX Runtime.
        timed: What is timed: case → inputs, float32 [B, 3, S, S] or int64 [B, L].
        compared: Inputs [N, …] whose embeddings are compared with torch's, in batches.
        threads: Threads of one forward pass.
        device: cpu, cuda, cuda:1, …
        spin: Let waiting threads spin.
    """

    runtime: str
    model: Path
    timed: dict[Case, Array]
    compared: list[Array]
    threads: int
    device: str
    spin: bool


@dataclass(frozen=True)
class Started:
    """What a variant took to be ready, having run each case once and embedded what is compared.

    Args:
        start_seconds: From the file to the first embedding, compiling included.
        idle_bytes: Memory of the process with the runtime loaded and nothing else.
        peak_bytes: The most memory that it had, less `idle_bytes`; on CUDA the most that torch had allocated there.
        embeddings: float32 [N, D] of `Job.compared`, end to end.
        device: Where it really runs.
    """

    start_seconds: float
    idle_bytes: int
    peak_bytes: int
    embeddings: Array
    device: str


_runs: dict[Case, Callable[[], object]] = {}  # of this process


def warm_up(job: Job, prepare: Callable[[Array], T], encode: Callable[[T], Array], began: float) -> tuple[float, Array]:
    """Run all of a job once, and keep its cases for `take_turn`.

    Args:
        job: What is asked for.
        prepare: Brings inputs into the runtime's own form, outside of what is timed.
        encode: Prepared inputs → float32 [B, D], finished when it returns.
        began: `time.perf_counter()` before the model was loaded.

    Returns:
        `start_seconds` and `embeddings` of `Started`.
    """
    _runs.clear()
    _runs.update({case: partial(encode, prepare(inputs)) for case, inputs in job.timed.items()})
    runs = iter(_runs.values())
    next(runs)()
    start_seconds = time.perf_counter() - began
    for run in runs:
        run()
    return start_seconds, np.concatenate([encode(prepare(inputs)) for inputs in job.compared])


def take_turn(case: Case, passes: int) -> list[float]:
    """Seconds of each of `passes` forward passes, after one that is not timed.

    Where they are slow there are fewer, and none before, since caches are then cold at the start of every pass.
    """
    run = _runs[case]
    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    seconds = [first] if first > TURN_SECONDS else []
    while not seconds or (len(seconds) < passes and time.perf_counter() - began < TURN_SECONDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds
