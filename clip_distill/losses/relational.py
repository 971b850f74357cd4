"""Losses between the samples of a batch: what is close to what, rather than where a sample lies.

They take the same `student` and `target` [B, D] as the others, scale them to unit length, and need nothing else. Under
several processes the batch is that of all of them, gathered.
Shapes: B batch of this process, G batch of all, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.losses.similarity import first_row, gather, kl, scaled_cosines, temperatures


class GramKL(nn.Module):
    """KL between teacher's and student's similarities within the batch (image-image or text-text).

    mean_b KL(softmax_j(t_b·t_j / τ_t) ‖ softmax_j(s_b·s_j / τ)) over the batch's other samples j ≠ b, embeddings
    normalised. The self-supervised form of relational distillation: SEED (Fang et al., 2021, arXiv:2101.04731, eq. 5)
    with the batch in place of its queue, and the student's own embeddings on both sides; the uni-modal distance
    preserving term of DIME-FM (Sun et al., 2023, arXiv:2303.18232). Zero at identity where τ_t = τ, and wherever the
    student is a rotation of the teacher.

    Args:
        temperature: τ, the student's; a low one makes it about the nearest neighbours.
        teacher_temperature: τ_t; by default τ.
    """

    def __init__(self, temperature: float = 0.05, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature, self.teacher_temperature = temperatures("gram_kl", temperature, teacher_temperature)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        own = scaled_cosines(student, gather(student), self.temperature)  # [B, G]
        theirs = scaled_cosines(target, gather(target), self.teacher_temperature)
        places = torch.arange(len(student), device=student.device) + first_row(student)
        itself = F.one_hot(places, own.shape[1]).bool()
        least = torch.finfo(own.dtype).min  # a sample's similarity to itself is given no weight
        return kl(theirs.masked_fill(itself, least), own.masked_fill(itself, least))


class InfoNCE(nn.Module):
    """Contrastive: among the teacher's embeddings of the batch, each student's embedding is to find its own sample's.

    −mean_b log softmax_j(s_b·t_j / τ) at j = b, j over the batch of all processes, embeddings normalised. InfoNCE (van
    den Oord et al., 2018, arXiv:1807.03748) from student to teacher. CLIP-KD's interactive contrastive learning (Yang
    et al., 2024, arXiv:2307.12732) has this form, with the teacher's embedding of the image's caption as t_b; here it
    is the teacher's embedding of the sample itself, which needs no pairs and no other tower.

    Not zero at identity, which is not quite its minimum: it also pushes away from the batch's other samples, from near
    ones most. Samples given twice in a batch are each other's wrong answers. τ is fixed here; CLIP-KD learns it, from
    0.07.

    Args:
        temperature: τ.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature, _ = temperatures("infonce", temperature, None)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        cosines = scaled_cosines(student, gather(target), self.temperature)  # [B, G]
        return F.cross_entropy(cosines, torch.arange(len(student), device=student.device) + first_row(student))


class RKDDistance(nn.Module):
    """Distances between the batch's samples, as shares of their mean, are to be the teacher's.

    mean_{i<j} h(|s_i − s_j| / μ_s − |t_i − t_j| / μ_t), h the Huber function (½x² up to 1, then |x| − ½), μ the mean
    distance of the pairs i < j of the batch of all processes: the distance-wise loss of RKD (Park et al., 2019,
    arXiv:1904.05068) as in its code, here on embeddings scaled to unit length. Zero at identity, and wherever the
    student is a rotation of the teacher. Zero for a batch of one, which has no pairs.
    """

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        student, target = (F.normalize(gather(rows), dim=-1) for rows in (student, target))
        if len(student) < 2:
            return 0 * student.sum()
        own, theirs = F.pdist(student), F.pdist(target)  # [G (G − 1) / 2]
        tiny = torch.finfo(own.dtype).tiny  # all samples in one place
        return F.smooth_l1_loss(own / own.mean().clamp_min(tiny), theirs / theirs.mean().clamp_min(tiny))
