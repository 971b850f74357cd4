"""The largest batch that fits: on the CPU by what small ones take, on CUDA by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from clip_distill.planning.estimate import grow, largest_batch
from clip_distill.system.allocator import give_back
from clip_distill.system.processes import PeakMemory, available_bytes
from clip_distill.towers.memory import fits_on_cuda


def largest_that_fits(run: Callable[[int], Any], device: torch.device, batch_size: int, most: int) -> int:
    """The largest batch that `run` can do on a device.

    On CUDA by trying. On the CPU, where trying would end with a killed machine, by the memory that two small batches
    take, against what is free.
    """
    if device.type == "cuda":
        return grow(lambda size: fits_on_cuda(run, size), batch_size, most)
    small, large = max(1, batch_size // 8), max(2, batch_size // 2)
    run(small)  # what is allocated once
    free, peaks = available_bytes(), []
    for size in (small, large):
        give_back()  # memory that is kept would hide what the next call takes
        with PeakMemory(interval=0.002, alone=True) as memory:
            run(size)
        peaks.append(memory.peak)
    return largest_batch(free, (peaks[1] - peaks[0]) / (large - small), most)
