"""Losses against what a sample is paired with: a caption of the photo, or the photo of the caption.

`needs = ("pair",)` asks for the teacher's stored embedding of it, [B, D], drawn for each batch; no second tower is in
memory. Not every sample has one (a caption of Conceptual Captions has no photo here): such a row is all zeros.
Shapes: B batch of this process, G batch of all, P those of G that have a pair, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.losses.bank import Affinity
from clip_distill.losses.similarity import first_row, gather, scaled_cosines, temperatures


class ICL(nn.Module):
    """Interactive contrastive learning: among the batch's pairs, each student's embedding is to find its own.

    −mean_b log softmax_j(s_b·a_j / τ) at j = b, a_j the teacher's embedding of what sample j is paired with, over the
    samples of all processes that have a pair, embeddings normalised. One tower's half of ICL in CLIP-KD (Yang et al.,
    2024, arXiv:2307.12732), which trains both towers and averages the two. With the teacher's other tower in the place
    of a second student, it is CLIP's own task loss, too. τ is fixed; CLIP-KD learns it, from 0.07.

    Not zero at the teacher: it teaches the pairs, whatever the teacher thinks of them. Samples without a pair are left
    out, as samples and as answers; two captions of one photo in a batch are each other's wrong answers. Zero for a
    batch without pairs.

    Args:
        temperature: τ.
    """

    needs = ("pair",)

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature, _ = temperatures("icl", temperature, None)

    def forward(self, student: Tensor, target: Tensor, pair: Tensor) -> Tensor:
        pairs = gather(pair)
        there = has_pair(pairs)  # [G]
        cosines = scaled_cosines(student, pairs, self.temperature)  # [B, G]
        cosines = cosines.masked_fill(~there, torch.finfo(cosines.dtype).min)
        places = torch.arange(len(student), device=student.device) + first_row(student)
        each = F.cross_entropy(cosines, places, reduction="none")
        # processes may have unequally many pairs: DDP's mean of these is the mean over all of them
        share = len(pairs) / len(student) / there.sum().clamp_min(1)
        return each.where(has_pair(pair), 0).sum() * share


class PairAffinity(Affinity):
    """`affinity`, with what the batch's samples are paired with in the place of the bank.

    The affinity mimicking of TinyCLIP (Wu et al., 2023, arXiv:2309.12314) as published, for one tower: its other side
    is the batch's own captions or photos, here by the teacher's other tower. Samples without a pair count among the
    rows, and add no column. Zero for a batch without pairs.
    """

    needs = ("pair",)

    def forward(self, student: Tensor, target: Tensor, pair: Tensor) -> Tensor:
        pairs = gather(pair)
        pairs = pairs[has_pair(pairs)]  # [P, D]
        return super().forward(student, target, pairs) if len(pairs) else 0 * student.sum()


def has_pair(pair: Tensor) -> Tensor:
    """[N, D] → [N] which rows are not all zeros."""
    return pair.ne(0).any(dim=-1)
