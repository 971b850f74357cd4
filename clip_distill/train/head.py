"""A student's head in closed form: the last linear map, solved on the stored targets before the first step.

The student then starts where linear probing would end, and fine-tuning changes what lies below from there: LP-FT (Kumar
et al., 2022, arXiv:2202.10054), with least squares in the place of the probe's own training.
Shapes: N samples, B batch, C features before the head, H hidden width, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from clip_distill.batches.datasets import Batch
from clip_distill.batches.loader import DistillData
from clip_distill.evaluation.recall import mean_cosine
from clip_distill.students.cut import CutBackbone
from clip_distill.system.errors import InvalidValue
from clip_distill.system.feed import Feed
from clip_distill.system.talk import progress, say
from clip_distill.towers.spec import pick_device
from clip_distill.train.distill import Distiller

STRENGTH = 0.1  # of the ridge; recall hardly changes between 0.01 and 0.3


@torch.no_grad()
def solve_head(module: Distiller, data: DistillData, samples: int) -> None:
    """Replace a student's head by the one that comes nearest to the stored targets on the first samples of an epoch.

    It is deterministic, so every process of a run finds the same.

    Args:
        module: What trains; `prepare` was called. Its average, if there is one, gets the same head.
        data: What it trains on, with stored targets.
        samples: N, at most an epoch.

    Raises:
        ValueError: The student's head is not a linear map, nor the two layers of `timm_cut`.
    """
    name = head_name(module.student)
    head = getattr(module.student, name)
    features, targets = embed_without_head(module, data, samples, name)
    unit = F.normalize(targets, dim=-1) * targets.norm(dim=-1).mean()  # each sample counts alike
    weight, bias = ridge(features, unit, STRENGTH, centred=isinstance(head, nn.Sequential))
    set_head(head, weight, bias)
    if module.average is not None:
        module.average.set(module.student)  # type: ignore[no-untyped-call]
    say(f"head: solved on {len(features):,} samples, cosine {mean_cosine(features @ weight + bias, targets):.3f}")


def ridge(features: Tensor, targets: Tensor, strength: float, centred: bool) -> tuple[Tensor, Tensor]:
    """The W [C, D] and b [D] that minimise Σ_n |x_n W + b − t_n|² + λ |W|², in float64.

    Args:
        features: x, [N, C].
        targets: t, [N, D].
        strength: λ, as a share of the mean of the diagonal of XᵀX.
        centred: Whether there is a b; else it is zero.
    """
    x, t = features.double(), targets.double()
    x_mean, t_mean = (x.mean(0), t.mean(0)) if centred else (x.new_zeros(x.shape[1]), t.new_zeros(t.shape[1]))
    x, t = x - x_mean, t - t_mean
    gram = x.T @ x  # [C, C]
    gram.diagonal().add_(strength * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ t)
    return weight.float(), (t_mean - x_mean @ weight).float()


def head_name(student: nn.Module) -> str:
    """What a student calls the layers or the matrix that it ends in.

    Raises:
        ValueError: It is of another kind.
    """
    found: object = type(student).__name__
    if isinstance(student, CutBackbone):
        if isinstance(student.head[1], nn.Linear):
            return "head"
        found = "timm_cut with head conv"
    elif isinstance(student, VisionTransformer) and student.proj is not None:
        return "proj"
    elif isinstance(student, TextTransformer) and isinstance(student.text_projection, nn.Parameter):
        return "text_projection"
    raise InvalidValue(
        f"student.probe: expected a student whose head is a linear map (vit, transformer) or timm_cut's two layers, "
        f"found {found}. Leave it out"
    )


def set_head(head: nn.Sequential | nn.Parameter, weight: Tensor, bias: Tensor) -> None:
    """Give a head a linear map; two layers with a GELU between them compute it too.

    Since gelu(z) − gelu(−z) = z, two layers [P, −P] and [Q; −Q] with P Q = W do, where W's rank is no more than H/2;
    else they compute the nearest map of that rank. P and Q share W's singular values evenly.

    Args:
        head: timm_cut's pooling, Linear(C, H), GELU and Linear(H, D); or a matrix [C, D].
        weight: W, [C, D].
        bias: b, [D]; zero for a matrix.
    """
    if isinstance(head, nn.Parameter):
        head.copy_(weight)
        return
    _, first, _, last = head
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = min(first.out_features // 2, len(values))
    roots = values[:rank].sqrt()
    p, q = left[:, :rank] * roots, roots[:, None] * right[:rank]  # [C, rank], [rank, D]
    # hidden units beyond 2 · rank keep their first layer, and have no say until training gives them one
    first.weight[: 2 * rank] = torch.cat([p, -p], 1).T
    first.bias.zero_()
    last.weight.zero_()
    last.weight[:, : 2 * rank] = torch.cat([q, -q]).T
    last.bias.copy_(bias)


@torch.no_grad()
def embed_without_head(module: Distiller, data: DistillData, samples: int, head: str) -> tuple[Tensor, Tensor]:
    """What comes before the head, [N, C], and the targets, [N, D], both on the CPU."""
    order, device = data.order(), pick_device("auto")
    # not `train_dataloader`, which would settle the number of workers before `fit` can measure it
    loader: Feed[Batch] = Feed(data.train, batch_size=None, sampler=order, num_workers=data.chosen_workers())
    batches = min(len(order), -(-samples // data.options.batch_size))
    blocks = []
    student = module.student.to(device).eval()
    with headless(student, head), torch.compiler.set_stance("force_eager"):
        for batch in progress(islice(loader, batches), "head", batches, unit=" batches"):
            features = module.embed(module.spec, student, batch.inputs.to(device))
            blocks.append((features.float().cpu(), batch.target))
    student.cpu()
    module.train()
    features, targets = map(torch.cat, zip(*blocks, strict=True))
    return features, targets


@contextmanager
def headless(student: nn.Module, name: str) -> Iterator[None]:
    """Let a student end before its head of this name; of several layers the first, which pools, stays."""
    head = getattr(student, name)
    setattr(student, name, head[0] if isinstance(head, nn.Sequential) else None)
    try:
        yield
    finally:
        setattr(student, name, head)
