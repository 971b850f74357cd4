"""Retrieval as pure functions of embeddings: ranks, recall@K, median rank, and closeness to another model.

Scores are computed in float64, which neither autocast nor TF32 touches, and in chunks, so that 25,000 captions against
5,000 photos never need one whole matrix. Shapes: N_i images, N_t captions, N rows, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_distill.system.errors import InvalidValue

CHUNK_SCORES = 1 << 23  # scores held at a time, 64 MiB
TIE = 1e-9  # cosines closer than this are equal: float64 sums taken in another order differ by about 1e-15
KS = (1, 5, 10)


def retrieval_ranks(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_caption: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rank of the best right answer of every query, 1 being the best; a tie with a wrong answer counts as lost.

    A rank is 1 + the number of wrong candidates whose cosine is at least that of the best right one, so a model that
    gives every input the same embedding gets the worst rank, not the first.

    Args:
        image_embeddings: [N_i, D], normalised in here. Photos without a caption are candidates, but no queries.
        text_embeddings: [N_t, D], normalised in here.
        image_of_caption: [N_t] integers, the row of each caption's photo.
        chunk: Captions scored at a time; by default as many as 64 MiB of scores hold. It doesn't change the result.

    Returns:
        Text→image ranks [N_t], in the captions' order, and image→text ranks [photos with a caption], in the photos'
        order; int64.

    Raises:
        ValueError: Shapes disagree, a photo's row doesn't exist, there is nothing to rank, or a value is not finite.
    """
    images = _unit(image_embeddings, "image embeddings")
    texts = _unit(text_embeddings, "text embeddings").to(images.device)
    owner = _owners(image_of_caption, images, texts)
    right = (texts * images[owner]).sum(1)  # [N_t]
    best = right.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, right, "amax")  # [N_i]
    text_to_image = torch.empty_like(owner)
    wrong_captions = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    step = chunk or max(1, CHUNK_SCORES // len(images))
    for start in range(0, len(texts), step):
        rows = slice(start, start + step)
        scores = texts[rows] @ images.T
        scores.scatter_(1, owner[rows, None], -torch.inf)  # only wrong answers remain
        text_to_image[rows] = 1 + (scores >= right[rows, None] - TIE).sum(1)
        wrong_captions += (scores >= best - TIE).sum(0)
    # an own caption is -inf, and so is the best score of a photo without captions, which is no query
    return text_to_image, 1 + wrong_captions[owner.bincount(minlength=len(images)) > 0]


def retrieval_metrics(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_caption: Tensor, chunk: int | None = None
) -> dict[str, float]:
    """Recall@1/5/10 in per cent, and the median rank, of text→image (`t2i_…`) and image→text (`i2t_…`).

    Args and errors are those of `retrieval_ranks`.

    Returns:
        `t2i_r1`, `t2i_r5`, `t2i_r10`, `t2i_median_rank`, the same for `i2t_`, and `mean_recall`, the mean of the six.
    """
    text_to_image, image_to_text = retrieval_ranks(image_embeddings, text_embeddings, image_of_caption, chunk)
    metrics: dict[str, float] = {}
    for direction, ranks in (("t2i", text_to_image), ("i2t", image_to_text)):
        ranks = ranks.cpu().double()
        metrics |= {f"{direction}_r{k}": 100 * int((ranks <= k).sum()) / len(ranks) for k in KS}
        metrics[f"{direction}_median_rank"] = ranks.quantile(0.5).item()
    recalls = [metrics[name] for name in RECALLS]
    return metrics | {"mean_recall": sum(recalls) / len(recalls)}


def match_metrics(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Whether each row's student embedding finds the teacher's of the same row among the teacher's of all rows.

    Args:
        student: [N, D].
        teacher: [N, D] of the same inputs.

    Returns:
        `match_r1`, `match_r5`, `match_r10`, recall in per cent, and `mean_match`, the mean of the three.
    """
    _require_same_rows(student, teacher)
    ranks, _ = retrieval_ranks(teacher, student, torch.arange(len(teacher)))
    metrics = {f"match_r{k}": 100 * int((ranks <= k).sum()) / len(ranks) for k in KS}
    return metrics | {"mean_match": sum(metrics.values()) / len(KS)}


RECALLS = tuple(f"{direction}_r{k}" for direction in ("t2i", "i2t") for k in KS)


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Mean over rows of the cosine between two [N, D] sets of embeddings of the same inputs."""
    _require_same_rows(first, second)
    left = _unit(first, "first embeddings")
    return (left * _unit(second, "second embeddings").to(left.device)).sum(1).mean().item()


def neighbour_overlap(first: Tensor, second: Tensor, k: int = 10) -> float:
    """Share (0 to 1) of each row's k nearest other rows on which two sets of embeddings agree, averaged over the rows.

    Args:
        first: [N, D].
        second: [N, D'] of the same inputs.
        k: Neighbours by cosine; N - 1 where there are fewer.

    Raises:
        ValueError: Fewer than two rows, another number of rows, or values that are not finite.
    """
    if len(first) < 2:
        raise InvalidValue(f"neighbour overlap: expected at least 2 rows, found {len(first)}")
    _require_same_rows(first, second)
    left = _unit(first, "first embeddings")
    right = _unit(second, "second embeddings").to(left.device)
    k = min(k, len(left) - 1)
    step = max(1, CHUNK_SCORES // len(left))
    shared = 0
    for start in range(0, len(left), step):
        near_left, near_right = (_nearest(side, start, step, k) for side in (left, right))
        shared += int((near_left[:, :, None] == near_right[:, None, :]).sum())
    return shared / (k * len(left))


def _nearest(unit: Tensor, start: int, step: int, k: int) -> Tensor:
    """[rows, k]: the nearest other rows of rows `start` to `start + step`."""
    scores = unit[start : start + step] @ unit.T
    scores.diagonal(start).fill_(-torch.inf)
    return scores.topk(k, dim=1).indices


def _unit(embeddings: Tensor, what: str) -> Tensor:
    """Rows of length 1, float64; a row of zeros stays zero. On the CPU where the device has no float64."""
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise InvalidValue(f"{what}: expected [N, D] with at least one row, found {list(embeddings.shape)}")
    embeddings = embeddings.detach()
    wide = (embeddings.cpu() if embeddings.device.type == "mps" else embeddings).double()
    bad = int((~wide.isfinite()).any(1).sum())
    if bad:
        raise InvalidValue(f"{what}: expected finite numbers, found NaN or infinity in {bad} of {len(wide)} rows")
    return F.normalize(wide, dim=1)


def _owners(image_of_caption: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    if images.shape[1] != texts.shape[1]:
        raise InvalidValue(f"expected one width, found images of width {images.shape[1]} and texts of {texts.shape[1]}")
    if image_of_caption.shape != (len(texts),) or image_of_caption.is_floating_point():
        found = f"{image_of_caption.dtype} {list(image_of_caption.shape)}"
        raise InvalidValue(f"image_of_caption: expected an integer for each of {len(texts)} captions, found {found}")
    owner = image_of_caption.to(images.device, torch.int64)
    if int(owner.min()) < 0 or int(owner.max()) >= len(images):
        found = f"{int(owner.min())} to {int(owner.max())}"
        raise InvalidValue(f"image_of_caption: expected rows of the {len(images)} images, found {found}")
    return owner


def _require_same_rows(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second):
        raise InvalidValue(f"expected embeddings of the same inputs, found {len(first)} and {len(second)} rows")
