"""Losses between a student's embedding and the teacher's embedding of the same sample.

Every loss takes `student` and `target` [B, D], the towers' raw outputs (not normalised), and gives the mean over the
batch as a scalar. What a loss does to them first, it says. Shapes: B batch, D embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.system.errors import InvalidValue


class L1(nn.Module):
    """Mean absolute difference, mean_{b,d} |s_bd − t_bd|. Zero at identity.

    Args:
        normalize: Scale both to unit length first; without, the student also learns the teacher's lengths.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(*_unit(student, target) if self.normalize else (student, target))


class MSE(nn.Module):
    """Mean squared difference, mean_{b,d} (s_bd − t_bd)². Zero at identity.

    With `normalize`, D times this is the squared distance on the sphere, 2 − 2·cosine: the feature distillation of
    CLIP-KD (Yang et al., 2024, arXiv:2307.12732, eq. 8). Without, sentence-transformers' `MSELoss`.

    Args:
        normalize: Scale both to unit length first.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(*_unit(student, target) if self.normalize else (student, target))


class Cosine(nn.Module):
    """One minus the cosine, mean_b (1 − s_b·t_b / |s_b||t_b|). Normalises; zero where directions agree."""

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, target, dim=-1).mean()


class CrossEntropy(nn.Module):
    """Cross-entropy of the student against the teacher's soft targets, both as distributions over the D dimensions.

    H(p, q) = −mean_b Σ_d p_bd log q_bd, with p = softmax(t_b), q = softmax(s_b). Each softmax is taken once: a second
    one, before a cross-entropy that applies its own, flattens q until nothing is left to learn from. Inputs are not
    normalised. The minimum, where s = t up to a constant, is the entropy of p, not zero.
    """

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(student, target.softmax(dim=-1))


class KL(nn.Module):
    """Kullback-Leibler divergence of the student from the teacher, both as distributions over the D dimensions.

    T² · mean_b Σ_d p_bd (log p_bd − log q_bd), with p = softmax(t_b / T), q = softmax(s_b / T): Hinton et al., 2015
    (arXiv:1503.02531), whose T² keeps gradients of one size at every temperature. Inputs are not normalised. Zero at
    identity.

    Args:
        temperature: T; higher weighs the small dimensions more.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise InvalidValue(f"kl: expected temperature > 0, found {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        log_p = (target / self.temperature).log_softmax(dim=-1)
        log_q = (student / self.temperature).log_softmax(dim=-1)
        return self.temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _unit(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(student, dim=-1), F.normalize(target, dim=-1)
