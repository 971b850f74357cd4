"""Losses against a bank: the teacher's stored embeddings of the other tower, as anchors.

A run needs no pairs for them and no second tower: a sample of the store's other training table is read once and stays
as it is. `needs = ("bank",)` asks for it; `forward` takes it as the third argument, [K, D], not normalised.
Shapes: B batch of this process, G batch of all, K bank, D embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.losses.similarity import gather, kl, scaled_cosines, temperatures


class BankKL(nn.Module):
    """KL between teacher's and student's similarities with the bank (image-text, or text-image).

    mean_b KL(softmax_k(t_b·a_k / τ_t) ‖ softmax_k(s_b·a_k / τ)) over the bank's rows a_k; all normalised. The
    image-to-text half of the VL score distillation of DIME-FM (Sun et al., 2023, arXiv:2303.18232), whose texts are
    drawn anew for each batch and whose loss compares both directions; its code has τ_t = τ = 0.01, that is, CLIP's own
    logit scale of 100. Zero at identity where τ_t = τ.

    Args:
        temperature: τ, the student's.
        teacher_temperature: τ_t; by default τ.
    """

    needs = ("bank",)

    def __init__(self, temperature: float = 0.01, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature, self.teacher_temperature = temperatures("bank_kl", temperature, teacher_temperature)

    def forward(self, student: Tensor, target: Tensor, bank: Tensor) -> Tensor:
        theirs = scaled_cosines(target, bank, self.teacher_temperature)  # [B, K]
        return kl(theirs, scaled_cosines(student, bank, self.temperature))


class Affinity(nn.Module):
    """Cross-entropy between teacher's and student's affinities of batch and bank, in both directions.

    ½ mean_b H(softmax_k(t_b·a_k / τ_t), softmax_k(s_b·a_k / τ)) + ½ mean_k H(softmax_b(…), softmax_b(…)), with
    H(p, q) = −Σ p log q, b over the batch of all processes, k over the bank's rows a_k; all normalised. The affinity
    mimicking of TinyCLIP (Wu et al., 2023, arXiv:2309.12314) and of its code, which averages the two; there the other
    side is the batch's own captions through the student's own text tower, here it is the bank. The minimum, at identity
    where τ_t = τ, is the teacher's entropy, not zero. Its gradient is that of the two KLs: with a bank, what DIME-FM
    (arXiv:2303.18232) calls VL score distillation, halved.

    Args:
        temperature: τ, the student's.
        teacher_temperature: τ_t; by default τ.
    """

    needs = ("bank",)

    def __init__(self, temperature: float = 0.01, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature, self.teacher_temperature = temperatures("affinity", temperature, teacher_temperature)

    def forward(self, student: Tensor, target: Tensor, bank: Tensor) -> Tensor:
        theirs = scaled_cosines(gather(target), bank, self.teacher_temperature)  # [G, K]
        own = scaled_cosines(gather(student), bank, self.temperature)
        to_bank = F.cross_entropy(own, theirs.softmax(dim=-1))
        from_bank = F.cross_entropy(own.T, theirs.T.softmax(dim=-1))
        return (to_bank + from_bank) / 2
