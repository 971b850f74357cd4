"""Losses between similarities: what is close to what, rather than where a sample lies.

They take the same `student` and `target` [B, D] as the others. Under several processes the target side is gathered, so
that each process compares its samples with the whole batch's.
Shapes: B batch of this process, G batch of all, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class GramKL(nn.Module):
    """KL between teacher's and student's similarities within the batch (image-image or text-text).

    mean_b KL(softmax_j(t_b·t_j / τ) ‖ softmax_j(s_b·s_j / τ)) over the batch's other samples j ≠ b, embeddings
    normalised. The self-supervised form of relational distillation: SEED (Fang et al., 2021, arXiv:2101.04731, eq. 5)
    with the batch in place of its queue. Zero at identity, and wherever the student is a rotation of the teacher.

    Args:
        temperature: τ; a low one makes it about the nearest neighbours.
    """

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"gram_kl: expected temperature > 0, found {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        student, target = F.normalize(student, dim=-1), F.normalize(target, dim=-1)
        all_student, all_target, first = _gather(student), _gather(target), _first_row(student)
        own = torch.arange(len(student), device=student.device)
        itself = F.one_hot(own + first, len(all_student)).bool()  # [B, G]
        log_q = _log_similarities(student, all_student, self.temperature, itself)
        log_p = _log_similarities(target, all_target, self.temperature, itself)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _log_similarities(rows: Tensor, others: Tensor, temperature: float, itself: Tensor) -> Tensor:
    """log softmax [B, G] of similarities; a sample's similarity to itself is given no weight."""
    with torch.autocast(rows.device.type, enabled=False):  # bf16's three digits, over a small τ, would be noise
        similarities = (rows @ others.T) / temperature
    return similarities.masked_fill(itself, torch.finfo(similarities.dtype).min).log_softmax(dim=-1)


class _AllGather(torch.autograd.Function):
    """[B, D] of each process → [G, D] in order of rank. A row's gradient is the sum of what all processes ask of it."""

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


def _gather(rows: Tensor) -> Tensor:
    gathered: Tensor = _AllGather.apply(rows) if _distributed() else rows
    return gathered


def _first_row(rows: Tensor) -> int:
    """Where this process's rows begin in the gathered ones."""
    return dist.get_rank() * len(rows) if _distributed() else 0
