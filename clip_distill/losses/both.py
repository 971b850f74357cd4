"""Losses between two students that train together, one for each tower, on (photo, caption) pairs.

They are called with both students' embeddings of the batch's pairs, the teacher's of the same, and whose they are:

    image, text [B, D]: the students', not normalised
    image_target, text_target [B, D]: the teacher's, not normalised
    pairs [B, 2]: whole numbers, which photo and which caption

Under several processes the batch is that of all of them, gathered.
Shapes: B pairs of this process, G pairs of all, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.losses import WeightedSum, make_loss
from clip_distill.losses.similarity import first_row, gather, kl, scaled_cosines, temperatures

BETWEEN = {
    "both_affinity": "clip_distill.losses.both:BothAffinity",
    "both_infonce": "clip_distill.losses.both:BothInfoNCE",
}


class BothAffinity(nn.Module):
    """KL between the teacher's and the two students' image-text affinities, in both directions.

    ½ mean_b KL(softmax_j(ti_b·tt_j / τ_t) ‖ softmax_j(si_b·st_j / τ)) + ½ the same for texts b and images j, with s the
    students' and t the teacher's image (i) and text (t) embeddings of the pairs of all processes; all normalised. The
    affinity mimicking of TinyCLIP (Wu et al., 2023, arXiv:2309.12314), less the teacher's entropy, so that it is zero
    at identity where τ_t = τ, which is its minimum. It asks that the students agree with each other as the teacher's
    towers do, not that either is where the teacher's is. Several captions of a photo are no trouble: the teacher says
    how near each is.

    Args:
        temperature: τ, the students'.
        teacher_temperature: τ_t; by default τ.
    """

    def __init__(self, temperature: float = 0.01, teacher_temperature: float | None = None) -> None:
        super().__init__()
        self.temperature, self.teacher_temperature = temperatures("both_affinity", temperature, teacher_temperature)

    def forward(self, image: Tensor, text: Tensor, image_target: Tensor, text_target: Tensor, pairs: Tensor) -> Tensor:
        from_images = kl(self._theirs(image_target, text_target), self._own(image, text))  # of [B, G] each
        from_texts = kl(self._theirs(text_target, image_target), self._own(text, image))
        return (from_images + from_texts) / 2

    def _own(self, rows: Tensor, others: Tensor) -> Tensor:
        return scaled_cosines(rows, gather(others), self.temperature)

    def _theirs(self, rows: Tensor, others: Tensor) -> Tensor:
        return scaled_cosines(rows, gather(others), self.teacher_temperature)


class BothInfoNCE(nn.Module):
    """Contrastive: each student is to find, among the other's embeddings of the batch, that of its own pair.

    −½ mean_b log softmax_j(i_b·t_j / τ) at j = b − ½ the same for texts b and images j, embeddings normalised, j over
    the pairs of all processes, less those other than b that have b's photo or b's caption: another caption of the same
    photo is no wrong answer, nor a right one. The loss of CLIP (Radford et al., 2021, arXiv:2103.00020), but for the
    pairs left out. The teacher has no say in it. Not zero where the students agree; least where each pair's embeddings
    are one and all others' far.

    Args:
        temperature: τ.
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__()
        self.temperature, _ = temperatures("both_infonce", temperature, None)

    def forward(self, image: Tensor, text: Tensor, image_target: Tensor, text_target: Tensor, pairs: Tensor) -> Tensor:
        places = torch.arange(len(pairs), device=pairs.device) + first_row(pairs)
        alike = (pairs[:, None] == gather(pairs)).any(dim=-1)  # [B, G]
        alike[torch.arange(len(pairs), device=pairs.device), places] = False  # its own is the right answer
        return (self._find(image, text, places, alike) + self._find(text, image, places, alike)) / 2

    def _find(self, rows: Tensor, others: Tensor, places: Tensor, alike: Tensor) -> Tensor:
        cosines = scaled_cosines(rows, gather(others), self.temperature)  # [B, G]
        return F.cross_entropy(cosines.masked_fill(alike, torch.finfo(cosines.dtype).min), places)


class BothSum(nn.Module):
    """loss = Σ of the image student's losses + Σ of the text student's + Σ weight_i · loss_i between the two.

    Args:
        image: The image student's losses, against the teacher's embeddings.
        text: The text student's.
        between: Names in BETWEEN, or `module:Attr` of your own → weight.
        options: Name → keyword arguments of that loss.

    Raises:
        ValueError: There is no such loss, or it does not take its options.
    """

    def __init__(
        self,
        image: WeightedSum,
        text: WeightedSum,
        between: Mapping[str, float],
        options: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__()
        self.image, self.text, self.weights = image, text, dict(between)
        self.between = nn.ModuleList(make_loss(name, options.get(name, {}), BETWEEN) for name in between)

    def forward(
        self, image: Tensor, text: Tensor, image_target: Tensor, text_target: Tensor, pairs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """→ the sum, and each loss before its factor: `image_cosine`, `text_cosine`, `both_affinity`.

        A tower's losses that want a pair get the teacher's embedding of the other side of the very pair.
        Arguments are those of the losses above.
        """
        image_target, text_target = image_target.to(image.dtype), text_target.to(text.dtype)
        of_image, image_parts = self.image(image, image_target, text_target)
        of_text, text_parts = self.text(text, text_target, image_target)
        terms, parts = [of_image, of_text], {f"image_{name}": part for name, part in image_parts.items()}
        parts |= {f"text_{name}": part for name, part in text_parts.items()}
        for (name, weight), loss in zip(self.weights.items(), self.between, strict=True):
            parts[name] = loss(image, text, image_target, text_target, pairs)
            terms.append(weight * parts[name])
        return torch.stack(terms).sum(), parts
