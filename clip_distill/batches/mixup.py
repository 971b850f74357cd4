"""Mixup: a batch of views mixed in pairs, their targets alike.

Shapes: B batch, S image side, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_distill.batches.datasets import Batch


def mix(batch: Batch, alpha: float, key: Sequence[int]) -> Batch:
    """Mix each sample with another of its batch: λ of itself and 1 - λ of the other, λ ~ Beta(alpha, alpha).

    One λ a batch and a random permutation, as in the code of Zhang et al., 2018 (arXiv:1710.09412).

    Args:
        batch: Images. Its stored targets are mixed by `mix_embeddings`; where the teacher runs online, it is given the
            same mixed pixels instead, as in Beyer et al., 2022 (arXiv:2106.05237).
        alpha: Above 0; small values mostly leave one of the two, 1 draws λ uniformly.
        key: Whole numbers that alone decide λ and the permutation, so that a resumed run draws the same.
    """
    random = np.random.default_rng(key)
    share = float(random.beta(alpha, alpha))
    partner = torch.from_numpy(random.permutation(len(batch.rows))).to(batch.inputs.device)
    target, teacher_inputs = batch.target, batch.teacher_inputs
    return Batch(
        mix_pixels(batch.inputs, partner, share),
        None if target is None else mix_embeddings(target, partner, share),
        None if teacher_inputs is None else mix_pixels(teacher_inputs, partner, share),
        batch.rows,
    )


def mix_pixels(pixels: Tensor, partner: Tensor, share: float) -> Tensor:
    """uint8 [B, 3, S, S] → float32 of the same range. Normalising them later gives the mix of normalised images."""
    floats = pixels.to(torch.float32, memory_format=torch.channels_last)
    return floats.lerp(floats[partner], 1 - share)


def mix_embeddings(target: Tensor, partner: Tensor, share: float) -> Tensor:
    """[B, D] → [B, D]: directions and lengths mixed each for itself.

    A mix of the vectors themselves would be too short (two directions partly cancel), where a teacher's embedding of
    mixed pixels is about as long as those of the two images, and would lean to the longer one.
    """
    lengths = torch.linalg.vector_norm(target, dim=-1, keepdim=True)
    directions = F.normalize(target, dim=-1)
    mixed = F.normalize(directions.lerp(directions[partner], 1 - share), dim=-1)
    return mixed * lengths.lerp(lengths[partner], 1 - share)
