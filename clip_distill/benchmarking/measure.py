"""Measure a tower's variants: models and runtimes, each in a process of its own, taking turns.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip_distill.benchmarking.inputs import Inputs
from clip_distill.benchmarking.job import Array, Case, Job
from clip_distill.benchmarking.variant import Variant
from clip_distill.evaluation.recall import neighbour_overlap
from clip_distill.runtimes import require_writer
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import progress
from clip_distill.towers.spec import WEIGHTS_FILE, TowerSpec, count_parameters, save_tower

Runtime = Literal["eager", "compile", "onnx", "onnx-int8"]
PASSES = 5  # timed in a turn
LEAST_TURNS, MOST_SECONDS = 6, 20.0  # a slow case has its last turn when it took this long, but not before its sixth
RUNTIMES: tuple[Runtime, ...] = ("eager", "compile", "onnx", "onnx-int8")


@dataclass(frozen=True)
class Settings:
    """How everything is measured; see `clip_distill.verbs.benchmark.benchmark`."""

    runtimes: tuple[Runtime, ...] = RUNTIMES
    batch_sizes: tuple[int, ...] = (1, 32)
    tokens: int = 16
    threads: int = 2
    repeats: int = 50
    device: str = "cpu"
    spin: bool = False

    @property
    def uses_onnx(self) -> bool:
        return any(runtime.startswith("onnx") for runtime in self.runtimes)

    def require_sound(self) -> None:
        """Check what would otherwise show only after minutes.

        Raises:
            ValueError: A setting does not fit.
            ImportError: onnx or onnxruntime is asked for, and missing.
        """
        if "eager" not in self.runtimes:
            raise InvalidValue(
                f"expected eager among the runtimes, since it is what others are compared with, found "
                f"{list(self.runtimes)}"
            )
        if not self.batch_sizes or min(*self.batch_sizes, self.threads, self.repeats) < 1 or self.tokens < 2:
            raise InvalidValue(
                "expected batch sizes, threads and repeats of 1 or more and tokens of 2 or more, found "
                f"{list(self.batch_sizes)}, {self.threads}, {self.repeats} and {self.tokens}"
            )
        if self.uses_onnx:
            require_writer("onnx")


@dataclass(frozen=True)
class Subject:
    """A tower to measure: `role` is teacher or student, `name` what it was loaded by."""

    role: str
    name: str
    spec: TowerSpec
    module: nn.Module


def measure(subjects: Iterable[Subject], inputs: Inputs, settings: Settings) -> list[dict[str, Any]]:
    """Start all variants of some towers, then time them in turns, so that a busy machine slows them down alike.

    Args:
        subjects: Towers of one kind, image or text; one at a time is in this process's memory.
        inputs: What they are run on.
        settings: How.

    Returns:
        A record per subject and runtime: tower, role, name, parameters, inputs (real or random), runtime, device,
        file_bytes, start_seconds, idle_bytes, peak_bytes, rows (N), cosine (mean) and least_cosine with torch eager,
        neighbour_overlap, and `cases`: batch, tokens, flops, median_seconds, p90_seconds, runs, and turn_seconds (the
        median of each turn). One that could not be started has `failed`, the reason, in place of what was measured.
    """
    with ExitStack() as stack:
        entries = [entry for subject in subjects for entry in _start(subject, inputs, settings, stack)]
        running = [variant for _, variant, _ in entries if variant is not None]
        turns = [case for variant in running for case in variant.rounds]
        rounds = -(-settings.repeats // PASSES)
        with progress(total=rounds * len(turns), desc="time", unit=" turns") as bar:
            for number in range(rounds):
                for variant in running:
                    for case in variant.rounds:
                        if number < LEAST_TURNS or variant.seconds_of(case) < MOST_SECONDS:
                            variant.turn(case, min(PASSES, settings.repeats))
                        bar.update()
    return [
        record if variant is None else record | {"cases": _times(variant, flops)} for record, variant, flops in entries
    ]


def _start(
    subject: Subject, inputs: Inputs, settings: Settings, stack: ExitStack
) -> list[tuple[dict[str, Any], Variant | None, dict[Case, int]]]:
    """Each runtime's record as far as it goes without timing, its process, and the FLOPs of its cases."""
    spec = subject.spec
    timed = inputs.timed(spec, settings.batch_sizes, settings.tokens)
    compared = inputs.compared(spec, max(settings.batch_sizes))
    shared: dict[str, Any] = {"tower": spec.tower, "role": subject.role, "name": subject.name}
    shared |= {"parameters": count_parameters(subject.module), "inputs": inputs.kind}
    flops = {case: count_flops(subject.module, array) for case, array in timed.items()}
    entries: list[tuple[dict[str, Any], Variant | None, dict[Case, int]]] = []
    expected: Array | None = None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with progress(total=len(settings.runtimes)) as bar:
        for runtime in sorted(settings.runtimes, key=RUNTIMES.index):
            bar.set_description(f"start {spec.tower} {subject.role}, {runtime}")
            record = shared | {"runtime": runtime}
            try:
                model, size = _files(folder, subject, runtime)
                job = Job(runtime, model, timed, compared, settings.threads, settings.device, settings.spin)
                variant = Variant(job, stack)
            except Exception as error:
                if runtime == "eager":
                    raise
                # whatever a compiler, an exporter or a runtime stumbles over: the table is worth having without it
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                entries.append((record | {"failed": reason}, None, flops))
            else:
                started = variant.started
                expected = started.embeddings if expected is None else expected
                keys = ("device", "start_seconds", "idle_bytes", "peak_bytes")
                record |= {"file_bytes": size} | {key: getattr(started, key) for key in keys}
                entries.append((record | _closeness(started.embeddings, expected), variant, flops))
            bar.update()
    return entries


def _files(folder: Path, subject: Subject, runtime: str) -> tuple[Path, int]:
    """What a runtime loads, and the size of its weights' file in bytes; fp32's ONNX file is written once for both."""
    if not runtime.startswith("onnx"):
        if not (folder / WEIGHTS_FILE).is_file():
            save_tower(folder, subject.spec, subject.module)
        return folder, (folder / WEIGHTS_FILE).stat().st_size
    from clip_distill.exports.program import export_tower
    from clip_distill.exports.writers.onnx import quantise

    whole, small = folder / "fp32.onnx", folder / "int8.onnx"
    if not whole.is_file():
        export_tower(whole, subject.spec, subject.module)
    if runtime == "onnx":
        return whole, whole.stat().st_size
    quantise(whole, small)
    return small, small.stat().st_size


def _times(variant: Variant, flops: dict[Case, int]) -> list[dict[str, Any]]:
    cases = []
    for case, rounds in variant.rounds.items():
        seconds = np.concatenate(rounds)
        cases.append(
            {
                "batch": case.batch,
                "tokens": case.tokens,
                "flops": flops[case],
                "median_seconds": float(np.median(seconds)),
                "p90_seconds": float(np.quantile(seconds, 0.9)),
                "runs": len(seconds),
                "turn_seconds": [float(np.median(each)) for each in rounds],
            }
        )
    return cases


def _closeness(found: Array, expected: Array) -> dict[str, Any]:
    """How near embeddings [N, D] are to torch eager's of the same inputs."""
    left, right = torch.from_numpy(found), torch.from_numpy(expected)
    cosine = F.cosine_similarity(left.double(), right.double())
    overlap = neighbour_overlap(left, right) if len(left) > 1 else None
    closeness = {"cosine": float(cosine.mean()), "least_cosine": float(cosine.min()), "neighbour_overlap": overlap}
    return {"rows": len(left)} | closeness


def count_flops(module: nn.Module, inputs: Array) -> int:
    """Floating-point operations of a forward pass, a multiplication and its addition being two.

    torch's counter (`torch.utils.flop_counter`) knows matrix products and convolutions alone, and not those within
    fused attention on the CPU: so attention runs in its plain form here.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(torch.from_numpy(inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()
