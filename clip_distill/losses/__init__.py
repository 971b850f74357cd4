"""Losses, and their weighted sum. This package imports torch alone.

A loss is a module called with `student` and `target` [B, D] that returns a scalar. One that wants more names it in a
class attribute, `needs = ("bank",)`, and is called with that too, in that order:

    bank [K, D]: the teacher's stored embeddings of the other tower, not normalised; the same K throughout a run
    pair [B, D]: of them, the one of what each sample is paired with (a caption of the photo, or the photo of the
        caption), drawn for each batch; a row of zeros for a sample that has none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip_distill.system.errors import InvalidValue
from clip_distill.system.registry import resolve

LOSSES = {
    "l1": "clip_distill.losses.feature:L1",
    "mse": "clip_distill.losses.feature:MSE",
    "cosine": "clip_distill.losses.feature:Cosine",
    "ce": "clip_distill.losses.feature:CrossEntropy",
    "kl": "clip_distill.losses.feature:KL",
    "gram_kl": "clip_distill.losses.relational:GramKL",
    "rkd_distance": "clip_distill.losses.relational:RKDDistance",
    "infonce": "clip_distill.losses.relational:InfoNCE",
    "queue_kl": "clip_distill.losses.queue:QueueKL",
    "bank_kl": "clip_distill.losses.bank:BankKL",
    "affinity": "clip_distill.losses.bank:Affinity",
    "icl": "clip_distill.losses.pair:ICL",
    "pair_affinity": "clip_distill.losses.pair:PairAffinity",
}
NEEDS = ("bank",)  # the same throughout a run
BATCH_NEEDS = ("pair",)  # of each batch


def needed(names: Sequence[str]) -> set[str]:
    """What the named losses want beside student and target, by name.

    Raises:
        ValueError: There is no such loss.
    """
    return {need for name in names for need in needs_of(resolve("loss", LOSSES, name))}


def needs_of(loss: Any) -> tuple[str, ...]:
    """Of one loss, or of its class."""
    return tuple(getattr(loss, "needs", ()))


class WeightedSum(nn.Module):
    """loss = Σ weight_i · scale_i · loss_i, the three lists in the same order.

    `weight` says how much a loss matters, `scale` brings losses of different size to a like one; both only multiply,
    and need not sum to anything.

    Args:
        names: Names in LOSSES, or `module:Attr` of your own.
        weights: One per loss.
        scales: One per loss.
        options: Loss name → keyword arguments, for instance `{"kl": {"temperature": 4}}`.
        context: What losses may need, by name. It moves with the module between devices and is in no checkpoint.

    Raises:
        ValueError: The lists are empty or of unequal length, a loss is named twice, an option is for one not named, or
            a loss needs what is not in the context.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        scales: Sequence[float],
        options: Mapping[str, Mapping[str, Any]] | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not len(names) == len(weights) == len(scales) or not names:
            raise InvalidValue(
                f"expected a loss's name, weight and scale at each place of the three lists, found {len(names)} names "
                f"{list(names)}, {len(weights)} weights {list(weights)} and {len(scales)} scales {list(scales)}"
            )
        if len(set(names)) < len(names):
            raise InvalidValue(
                f"expected each loss once, found {list(names)}; add the weights of one that is named twice"
            )
        options = options or {}
        if unused := set(options) - set(names):
            raise InvalidValue(f"options are given for {sorted(unused)}, but the losses are {list(names)}")
        self.names = list(names)
        self.factors = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        self.losses = nn.ModuleList(make_loss(name, options.get(name, {})) for name in names)
        context = context or {}
        for name, loss in zip(names, self.losses, strict=True):
            if missing := set(needs_of(loss)) - set(context) - set(BATCH_NEEDS):
                known = ", ".join(NEEDS + BATCH_NEEDS)
                raise InvalidValue(
                    f"loss {name!r} needs {sorted(missing)}, which it was not given; a run can give {known}"
                )
        for need in sorted({need for loss in self.losses for need in needs_of(loss)} - set(BATCH_NEEDS)):
            self.register_buffer(need, context[need], persistent=False)

    def forward(self, student: Tensor, target: Tensor, pair: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Student and teacher embeddings [B, D], not normalised → the sum, and each loss before its factor.

        Args:
            student: [B, D].
            target: [B, D] the teacher's.
            pair: [B, D] for losses that need it.

        Raises:
            ValueError: A loss needs `pair`, which is None.
        """
        target = target.to(student.dtype)  # a batch may come in the trainer's half precision
        given = dict(self.named_buffers(recurse=False)) | ({} if pair is None else {"pair": pair})
        parts = {}
        for name, loss in zip(self.names, self.losses, strict=True):
            if missing := set(needs_of(loss)) - set(given):
                raise InvalidValue(
                    f"loss {name!r} needs each batch's {', '.join(sorted(missing))}, which it did not get"
                )
            parts[name] = loss(student, target, *(given[need].to(student.dtype) for need in needs_of(loss)))
        terms = [factor * part for factor, part in zip(self.factors, parts.values(), strict=True)]
        return torch.stack(terms).sum(), parts


def make_loss(name: str, options: Mapping[str, Any], known: Mapping[str, str] = LOSSES) -> nn.Module:
    """A loss by its name among the known ones, or `module:Attr`.

    Raises:
        ValueError: There is no such loss, or it does not take the options.
    """
    try:
        loss: nn.Module = resolve("loss", known, name)(**options)
    except TypeError as error:
        raise InvalidValue(f"loss {name!r} does not take the options {dict(options)}: {error}") from error
    return loss
