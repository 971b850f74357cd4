"""The classic way: the teacher runs at every step, on the very view that the student sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clip_distill.pixels.views import normalise
from clip_distill.towers.spec import TowerSpec


class OnlineTeacher:
    """A frozen teacher as a function of a batch. It is no module, so no optimiser or checkpoint finds it.

    Args:
        spec: What the module is.
        module: The tower, in eval mode; it follows its first input to its device.
    """

    def __init__(self, spec: TowerSpec, module: nn.Module) -> None:
        self.spec, self.module = spec, module.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """uint8 pixels [B, 3, S, S] or tokens [B, L] → float32 [B, D]."""
        if next(self.module.parameters()).device != inputs.device:
            self.module.to(inputs.device)
        if self.spec.tower == "image":
            inputs = normalise(inputs, self.spec.preprocess)
        embeddings: Tensor = self.module(inputs)
        return embeddings.float()
