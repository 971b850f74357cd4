"""Stage 3 of the GPU check: the largest batch of each stage on cards of 8, 12 and 24 GB."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_parts import Check
from gpu_train import assembled, make_step

from clip_distill.planning.memory import largest_that_fits
from clip_distill.store.embed import Runner
from clip_distill.teachers import load_teacher

CAPS = (8, 12, 24)  # GB
CONTEXT = 0.6e9  # bytes that CUDA itself takes on a card, which the cap on torch's own does not count
TEXT_TOKENS = 77


def stage(check: Check) -> None:
    """Teachers in float32, `embed`'s default, and in half; students in bf16-mixed."""
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for tower in ("image", "text"):
        jobs.append((f"fit {tower}", partial(student, check, tower)))
    for name in ("ViT-B-32",) if check.tiny else ("ViT-L-14", "ViT-B-32"):
        for tower in ("image", "text"):
            jobs.append((f"embed {name} {tower}, fp16", partial(teacher, check, name, tower)))
    for name, job in jobs:
        check.results.measure("memory", name, 1 if check.tiny else 15, job)


def student(check: Check, tower: str) -> dict[str, Any]:
    """The largest training step of the default student."""
    _, module, data = assembled(check, tower, 4, "disk")
    batch = next(iter(data.train_dataloader()))
    sample = batch.inputs[:1].to(check.device)
    if tower == "image":
        sample = sample.float() / 255
    else:
        sample = sample[:, :1].expand(1, TEXT_TOKENS).clone()
        sample[:, -1] = int(batch.inputs.max())
    target = batch.target[:1].to(check.device)
    objective = module.objective.to(check.device)
    step = make_step(check.device, module.student.to(check.device).train(), objective, "bf16-mixed")

    def run(size: int) -> None:
        step(sample.expand(size, *sample.shape[1:]).contiguous(), target.expand(size, -1).contiguous())

    return under_caps(check, run, 16 if check.tiny else 8192 if tower == "image" else 32768)


def teacher(check: Check, name: str, tower: str) -> dict[str, Any]:
    """The largest batch of a teacher's tower."""
    spec, module = load_teacher(check.teacher(name), tower)  # type: ignore[arg-type]
    runner = Runner(spec, module, check.device, "bf16" if check.tiny else "fp16")
    return under_caps(check, lambda size: runner(runner.blank(size)), 16 if check.tiny else 1024)


def under_caps(check: Check, run: Callable[[int], None], most: int) -> dict[str, Any]:
    """Cap → the largest batch of 2ᵏ, up to `most`; on a CPU, where nothing caps, by what small batches take."""
    device = check.device
    if device.type != "cuda":
        return {"uncapped": largest_that_fits(run, device, 8, most)}
    total = torch.cuda.get_device_properties(device).total_memory
    found: dict[str, Any] = {}
    for cap in CAPS:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (cap * 1e9 - CONTEXT) / total), device)
        try:
            start = max((int(value) for value in found.values()), default=64)
            found[f"{cap}_gb"] = largest_that_fits(run, device, max(1, start), most)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    return found | {"at_most": most}
