"""Losses, and their weighted sum. This package imports torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip_distill.registry import resolve

LOSSES = {
    "l1": "clip_distill.losses.feature:L1",
    "mse": "clip_distill.losses.feature:MSE",
    "cosine": "clip_distill.losses.feature:Cosine",
    "ce": "clip_distill.losses.feature:CrossEntropy",
    "kl": "clip_distill.losses.feature:KL",
    "gram_kl": "clip_distill.losses.relational:GramKL",
}


class WeightedSum(nn.Module):
    """loss = Σ weight_i · scale_i · loss_i, the three lists in the same order.

    `weight` says how much a loss matters, `scale` brings losses of different size to a like one; both only multiply,
    and need not sum to anything.

    Args:
        names: Names in LOSSES, or `module:Attr` of your own.
        weights: One per loss.
        scales: One per loss.
        options: Loss name → keyword arguments, for instance `{"kl": {"temperature": 4}}`.

    Raises:
        ValueError: The lists are empty or of unequal length, a loss is named twice, or an option is for one not named.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        scales: Sequence[float],
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if not len(names) == len(weights) == len(scales) or not names:
            raise ValueError(
                f"expected a loss's name, weight and scale at each place of the three lists, found {len(names)} names "
                f"{list(names)}, {len(weights)} weights {list(weights)} and {len(scales)} scales {list(scales)}"
            )
        if len(set(names)) < len(names):
            raise ValueError(
                f"expected each loss once, found {list(names)}; add the weights of one that is named twice"
            )
        options = options or {}
        if unused := set(options) - set(names):
            raise ValueError(f"options are given for {sorted(unused)}, but the losses are {list(names)}")
        self.names = list(names)
        self.factors = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        self.losses = nn.ModuleList(_make(name, options.get(name, {})) for name in names)

    def forward(self, student: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Student and teacher embeddings [B, D], not normalised → the sum, and each loss before its factor."""
        parts = {name: loss(student, target) for name, loss in zip(self.names, self.losses, strict=True)}
        terms = [factor * part for factor, part in zip(self.factors, parts.values(), strict=True)]
        return torch.stack(terms).sum(), parts


def _make(name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        loss: nn.Module = resolve("loss", LOSSES, name)(**options)
    except TypeError as error:
        raise ValueError(f"loss {name!r} does not take the options {dict(options)}: {error}") from error
    return loss
