"""What losses between similarities share: cosines, distributions over others, and the batch of all processes.

Shapes: B rows, K others to compare with, G batch of all processes, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clip_distill.system.errors import InvalidValue


def scaled_cosines(rows: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Cosines [B, K] of rows [B, D] and others [K, D], of any lengths, over the temperature."""
    with torch.autocast(rows.device.type, enabled=False):  # bf16's three digits, over a small τ, would be noise
        return F.normalize(rows, dim=-1) @ F.normalize(others, dim=-1).T / temperature


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """mean_b KL(softmax(teacher_b) ‖ softmax(student_b)) of logits [B, K]; zero where they agree up to a constant."""
    log_p, log_q = teacher.log_softmax(dim=-1), student.log_softmax(dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def temperatures(loss: str, student: float, teacher: float | None) -> tuple[float, float]:
    """The student's and the teacher's, the same where the teacher has none of its own.

    Raises:
        ValueError: One of them is not positive.
    """
    both = (student, student if teacher is None else teacher)
    for temperature in both:
        if temperature <= 0:
            raise InvalidValue(f"{loss}: expected temperature > 0, found {temperature}")
    return both


def gather(rows: Tensor) -> Tensor:
    """[B, D] of each process → [G, D] in order of rank, gradients included; the rows themselves in one process.

    A loss that each process computes on its own rows against the gathered ones, or on the gathered ones alone, gives
    through DDP's mean of gradients what one process with the whole batch would.
    """
    gathered: Tensor = _AllGather.apply(rows) if _distributed() else rows
    return gathered


def first_row(rows: Tensor) -> int:
    """Where this process's rows begin in the gathered ones."""
    return dist.get_rank() * len(rows) if _distributed() else 0


class _AllGather(torch.autograd.Function):
    """A row's gradient is the sum of what all processes ask of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
