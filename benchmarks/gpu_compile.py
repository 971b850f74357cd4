"""Stage 4 of the GPU check: what compiling and CUDA graphs save small students, whose steps are many small kernels."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from gpu_parts import Check
from gpu_results import Skip
from gpu_train import HALF, WARM, assembled, make_step, on_device, rate_of, synchronise

PRECISION = "bf16-mixed"


def stage(check: Check) -> None:
    """The floor of each student as it is, captured as a graph, and compiled."""
    for tower in ("text", "image"):
        batch = 4 if check.tiny else 256
        rates: dict[str, float] = {}
        for way, needs in (("eager", 8), ("graph", 10), ("compile", 60)):
            record = check.results.measure(
                "compile",
                f"{tower}, batch {batch}, {way}",
                1 if check.tiny else needs,
                partial(one, check, tower, batch, way, rates),
            )
            rates[way] = record.get("rate", 0.0)


def one(check: Check, tower: str, batch: int, way: str, rates: dict[str, float]) -> dict[str, Any]:
    """Samples a second of the step alone, and times the eager one."""
    if way == "graph" and check.device.type != "cuda":
        raise Skip("a CPU has no CUDA graphs")
    _, module, data = assembled(check, tower, batch, "disk", compile=way == "compile")
    student, batches = on_device(check, module, data, 1)
    objective = module.objective.to(check.device)
    began = time.perf_counter()
    if way == "graph":
        rate = captured(check, student, objective, *batches[0])
        start = None
    else:
        step = make_step(check.device, student, objective, PRECISION)
        step(*batches[0])
        synchronise(check.device)
        start = time.perf_counter() - began
        rate = rate_of(check, batches, step)
    found: dict[str, Any] = {"rate": rate} | ({} if start is None else {"first_step_seconds": start})
    return found | ({"times_eager": rate / rates["eager"]} if rates.get("eager") else {})


def captured(check: Check, student: Any, objective: Any, inputs: torch.Tensor, target: torch.Tensor) -> float:
    """Samples a second of one training step, recorded and replayed as PyTorch's notes on CUDA graphs say."""
    optimizer = torch.optim.AdamW(student.parameters(), fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(check.device.type, HALF[PRECISION], cache_enabled=False):
            embeddings = student(inputs)
        objective(embeddings.float(), target)[0].backward()
        optimizer.step()

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may pin memory meanwhile
        step()
    return rate_of(check, [(inputs, target)], lambda *_: graph.replay())
