"""The optimiser: which parameters decay, at which learning rate each trains, and the rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from clip_distill.recipe import Optimizer
from clip_distill.students.layers import layer_of


def make_optimizer(student: nn.Module, options: Optimizer, fused: bool) -> torch.optim.Optimizer:
    """AdamW over what of the student trains; with `fused`, one kernel for all parameters."""
    groups = parameter_groups(student, options)
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, fused=fused)


def parameter_groups(student: nn.Module, options: Optimizer) -> list[dict[str, Any]]:
    """Matrices and token embeddings with decay; norms, biases, position tables and class tokens without.

    Two groups; with layer-wise rates two a layer, whose rate is lr · layer_decay^(layers above it), as in BEiT (Bao et
    al., 2021, arXiv:2106.08254) and timm. Position tables and class tokens are what a tower, or a timm model within it,
    names in its `no_weight_decay()`.

    Raises:
        ValueError: layer_decay is given for a student whose layers are not known.
    """
    spared = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, part in student.named_modules()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }
    layers = {} if options.layer_decay == 1 else layer_of(student)
    last = max(layers.values(), default=0)
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for layer in sorted({layers.get(name, last) for name, _ in trained}):
        mine = [(name, p) for name, p in trained if layers.get(name, last) == layer]
        lr = options.lr * options.layer_decay ** (last - layer)
        decayed = [p for name, p in mine if p.ndim >= 2 and name not in spared]
        plain = [p for name, p in mine if p.ndim < 2 or name in spared]
        groups.append({"params": decayed, "weight_decay": options.weight_decay, "lr": lr})
        groups.append({"params": plain, "weight_decay": 0.0, "lr": lr})
    return groups


def lr_factor(options: Optimizer, total: int, epoch_steps: int) -> Callable[[int], float]:
    """Step → share of the peak learning rate: linear warm-up, then the schedule.

    Args:
        options: Warm-up and schedule.
        total: Steps of the whole run.
        epoch_steps: Steps of an epoch.
    """
    warmup = round(options.warmup * total) if options.warmup < 1 else round(options.warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if options.schedule == "constant":
            return 1.0
        if options.schedule == "step":
            return float(options.step_gamma ** (step // epoch_steps // options.step_epochs))
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return options.min_lr + (1 - options.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
