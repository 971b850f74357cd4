"""Stage 1 of the GPU check: training throughput of the default students, several ways."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import lightning as L
import throughput
import torch
from gpu_parts import Check
from throughput import Job
from torch import Tensor, nn

from clip_distill.losses import WeightedSum
from clip_distill.pixels.views import normalise
from clip_distill.recipe import Optimizer, Recipe
from clip_distill.train.optimizer import make_optimizer
from clip_distill.train.settings import TRAINER_DEFAULTS
from clip_distill.train.trainer import make_trainer, quiet_lightning

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WARM = 4  # steps before the clock starts
MODES = {"text": ("floor", "original", "disk", "resident", "memory"), "image": ("floor", "original", "disk", "packed")}


def stage(check: Check) -> None:
    """Both towers at the batches that matter most, then the others, each in all ways."""
    results = check.results
    small, most = (4, 8) if check.tiny else (256, 1024)
    plan = [("text", "bf16-mixed", most), ("image", "bf16-mixed", small)]
    if not check.tiny:
        plan += [("text", "bf16-mixed", 4096), ("image", "bf16-mixed", most), ("text", "bf16-mixed", small)]
        plan += [("image", "16-mixed", small), ("text", "16-mixed", most), ("image", "bf16-mixed", 4096)]
        plan += [("text", "bf16-mixed", 64), ("image", "bf16-mixed", 64)]
    for tower, precision, batch in plan:
        rates: dict[str, float] = {}
        if (tower, precision, batch) == ("image", "bf16-mixed", small):  # after the first of the other tower
            results.measure("training", "text, profile", 1 if check.tiny else 8, lambda: profile(check))
        for mode in MODES[tower]:
            record = results.measure(
                "training",
                f"{tower}, {precision}, batch {batch}, {mode}",
                1 if check.tiny else 8,
                lambda mode=mode, job=(tower, precision, batch), rates=rates: one(check, *job, mode, rates),  # type: ignore[misc]
            )
            rates[mode] = record.get("rate", 0.0)


def profile(check: Check) -> dict[str, Any]:
    """Where the main process's time goes, of a text student's steps: OUT/profile.txt."""
    import cProfile
    import pstats

    recipe, module, data = assembled(check, "text", 8 if check.tiny else 1024, "resident")
    profiler = cProfile.Profile()

    class Profiled(Clock):
        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            if self.began and not self.samples:
                profiler.enable()

    clock = Profiled(check.device, check.warm, check.moment)
    try:
        trained(check, recipe, module, data, "bf16-mixed", clock)
    finally:
        profiler.disable()
    with open(check.results.out / "profile.txt", "w", encoding="utf-8") as file:
        statistics = pstats.Stats(profiler, stream=file)
        statistics.sort_stats("tottime").print_stats(40)
        statistics.sort_stats("cumulative").print_stats(80)
    return {"steps": clock.steps}


def one(check: Check, tower: str, precision: str, batch: int, mode: str, rates: dict[str, float]) -> dict[str, Any]:
    """Samples a second of one way to train, with its ratio to the original and its share of the floor."""
    if check.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(check.device)
    recipe, module, data = assembled(check, tower, batch, mode)
    if mode == "floor":
        student, batches = on_device(check, module, data, 2 if batch > 1024 else 4)
        rate = floor(check, student, module.objective, batches, precision)
    else:
        rate = trained(check, recipe, module, data, precision)
    found: dict[str, Any] = {"tower": tower, "precision": precision, "batch": batch, "mode": mode, "rate": rate}
    if rates.get("original") and mode != "original":
        found["times_original"] = rate / rates["original"]
    if rates.get("floor") and mode != "floor":
        found["of_floor"] = rate / rates["floor"]
    if check.device.type == "cuda":
        found["peak_mib"] = torch.cuda.max_memory_allocated(check.device) / 2**20
    return found


def assembled(check: Check, tower: str, batch: int, mode: str, compile: bool = False) -> tuple[Recipe, Any, Any]:
    """The recipe, its module and its data, as `fit` makes them."""
    job = Job(
        tower,
        "original" if mode == "original" else "ours",
        "",  # of the Trainer, which takes it later
        str(check.data),
        str(check.store),
        check.teacher("ViT-B-32"),
        batch,
        steps=0,  # by the clock
        packed=mode == "packed",
        student=tuple(check.student(tower).items()),
        resident="memory" if mode == "memory" else mode == "resident",
        compile=compile,
    )
    recipe, module, data = throughput.assembled(job)
    module.prepare(recipe)
    return recipe, module, data


class Clock(L.Callback):
    """Times the steps after the first ones until there is enough, and ends the run."""

    def __init__(self, device: torch.device, warm: float, seconds: float) -> None:
        self.device, self.warm, self.seconds = device, warm, seconds
        self.steps, self.samples, self.began, self.taken = 0, 0, 0.0, 0.0
        self.first = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.steps += 1
        self.first = self.first or time.perf_counter()
        if not self.began:
            if self.steps >= WARM and time.perf_counter() - self.first >= self.warm:
                synchronise(self.device)
                self.began = time.perf_counter()
        elif not trainer.should_stop:
            self.samples += len(batch.rows)
            if time.perf_counter() - self.began > self.seconds:
                synchronise(self.device)
                self.taken = time.perf_counter() - self.began
                trainer.should_stop = True


def trained(check: Check, recipe: Recipe, module: Any, data: Any, precision: str, clock: Clock | None = None) -> float:
    """Samples a second of `fit`'s own Trainer."""
    quiet_lightning(entirely=True)
    clock = clock or Clock(check.device, check.warm, check.moment)
    options = TRAINER_DEFAULTS | {"max_epochs": -1, "max_steps": 10**6, "limit_val_batches": 0}
    options |= {"precision": precision, "callbacks": clock, "enable_progress_bar": False, "devices": 1}
    options |= {"accelerator": "gpu" if check.device.type == "cuda" else "cpu"}
    if check.device.type == "cuda":
        options["devices"] = [check.device.index or 0]
    trainer, *_ = make_trainer(recipe, options, Path(recipe.out))
    trainer.fit(module, data)
    return clock.samples / clock.taken


def on_device(check: Check, module: Any, data: Any, count: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The student, and a few of the batches that `fit` would bring, ready for it."""
    student = module.student.to(check.device).train()
    images = module.spec.tower == "image"
    batches = []
    for batch in islice(data.train_dataloader(), count):
        inputs = batch.inputs.to(check.device)
        batches.append((normalise(inputs, module.spec.preprocess) if images else inputs, batch.target.to(check.device)))
    return student, batches


def floor(
    check: Check, student: nn.Module, objective: WeightedSum, batches: list[tuple[Tensor, Tensor]], precision: str
) -> float:
    """Samples a second of forward and backward pass and the optimiser's step on what is in memory already."""
    step = make_step(check.device, student, objective.to(check.device), precision)
    return rate_of(check, batches, step)


def make_step(
    device: torch.device, student: nn.Module, objective: WeightedSum, precision: str
) -> Callable[[Tensor, Tensor], None]:
    optimizer = make_optimizer(student, Optimizer(), fused=True)
    half = HALF.get(precision)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16 and device.type == "cuda")

    def step(inputs: Tensor, target: Tensor) -> None:
        with torch.autocast(device.type, half) if half else contextlib.nullcontext():
            embeddings = student(inputs)
        loss, _ = objective(embeddings.float(), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def rate_of(check: Check, batches: list[tuple[Tensor, Tensor]], step: Callable[[Tensor, Tensor], None]) -> float:
    """Samples a second."""
    around: Iterator[tuple[Tensor, Tensor]] = cycle(batches)
    began = time.perf_counter()
    for number, (inputs, target) in enumerate(around, 1):
        step(inputs, target)
        if number >= WARM and time.perf_counter() - began >= check.warm / 2:
            break
    synchronise(check.device)
    seen, began = 0, time.perf_counter()
    while time.perf_counter() - began < check.moment:
        for inputs, target in islice(around, 10):
            step(inputs, target)
            seen += len(inputs)
        synchronise(check.device)
    return seen / (time.perf_counter() - began)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
