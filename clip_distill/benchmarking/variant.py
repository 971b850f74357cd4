"""A variant of a tower, started in a process of its own, which waits there for its turns."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any, TypeVar

from clip_distill.benchmarking.job import Case, Job, Started, take_turn
from clip_distill.system.errors import InvalidValue
from clip_distill.system.processes import end_with_parent, environment

T = TypeVar("T")


class Variant:
    """A job that is running.

    Args:
        job: What to start; errors of starting it are raised here.
        stack: Ends the process.

    Attributes:
        started: What `in_torch.start` or `in_onnx.start` returned.
        rounds: Case → the seconds of each turn's passes.
    """

    def __init__(self, job: Job, stack: ExitStack) -> None:
        # a fresh interpreter, as in a program of its own: it inherits nothing that this one has loaded
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
        self._pool = stack.enter_context(pool)
        policy, spins = ("ACTIVE", "300000") if job.spin else ("PASSIVE", "0")
        # OpenMP reads these as torch is loaded
        with environment("OMP_WAIT_POLICY", policy), environment("GOMP_SPINCOUNT", spins):
            self.started: Started = self._call(_start_of(job), job)
        self.rounds: dict[Case, list[list[float]]] = {case: [] for case in job.timed}

    def turn(self, case: Case, passes: int) -> None:
        """Time a few forward passes, and keep the seconds."""
        self.rounds[case].append(self._call(take_turn, case, passes))

    def seconds_of(self, case: Case) -> float:
        """How long a case's passes took until now."""
        return sum(map(sum, self.rounds[case]))

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise InvalidValue("its process was killed, most likely for want of memory") from error


def _start_of(job: Job) -> Callable[[Job], Started]:
    if job.runtime.startswith("onnx"):
        from clip_distill.benchmarking import in_onnx  # onnxruntime may be missing where it isn't asked for

        return in_onnx.start
    from clip_distill.benchmarking import in_torch

    return in_torch.start
