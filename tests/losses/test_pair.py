"""Losses against what a sample is paired with."""

from __future__ import annotations

from math import e, log

import pytest
import torch
from torch import Tensor, nn

from clip_distill.losses import WeightedSum, needed
from clip_distill.losses.bank import Affinity
from clip_distill.losses.pair import ICL, PairAffinity

EVERY = [ICL(0.5), PairAffinity(0.5)]
PAIR = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # two captions at right angles
NONE = torch.zeros(1, 2)


def name(loss: nn.Module) -> str:
    return type(loss).__name__


@pytest.fixture
def random() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, target, pair = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator)
    pair[2] = 0
    return student.requires_grad_(), target, pair


def test_icl_by_hand() -> None:
    """The first student is on its own caption, the second between the two."""
    student = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
    right, undecided = log(1 + 1 / e), log(2)
    assert float(ICL(1.0)(student, student, PAIR)) == pytest.approx((right + undecided) / 2, abs=1e-6)
    assert float(ICL(0.5)(student[:1], student[:1], PAIR[:1])) == 0  # its own is the only answer


def test_icl_leaves_out_samples_without_a_pair() -> None:
    student = torch.tensor([[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    paired = ICL(1.0)(student[:2], student[:2], PAIR)
    torch.testing.assert_close(ICL(1.0)(student, student, torch.cat([PAIR, NONE])), paired)


def test_pair_affinity_is_affinity_with_the_pairs_as_its_bank(random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, pair = random
    bank = torch.cat([pair[:2], pair[3:]])
    torch.testing.assert_close(PairAffinity(0.5)(student, target, pair), Affinity(0.5)(student, target, bank))


def test_pair_affinity_by_hand() -> None:
    """Teacher: each sample on its caption. Student: both between the captions, so uniform in both directions."""
    student, target = torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(PairAffinity(1.0)(student, target, PAIR)) == pytest.approx(log(2), abs=1e-6)


def test_icl_is_least_near_the_pairs() -> None:
    """With captions at right angles, the other captions push a student on its own away, all alike."""
    captions = torch.eye(4, dtype=torch.float64)
    student = captions.clone().requires_grad_()
    loss = ICL(0.5)(student, captions, captions)
    (gradient,) = torch.autograd.grad(loss, student)
    pushes = gradient[~torch.eye(4, dtype=torch.bool)]
    torch.testing.assert_close(pushes, pushes[:1].expand(12))
    assert float(pushes[0]) > 0
    best = captions - captions.mean()  # as far as its own caption allows
    (gradient,) = torch.autograd.grad(ICL(0.5)(best.requires_grad_(), captions, captions), best)
    assert float(gradient.abs().max()) < 1e-9


def test_pair_affinity_is_least_at_identity(random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, pair = random
    copy = target.clone().requires_grad_()
    least = PairAffinity(0.5)(copy, target, pair)
    (gradient,) = torch.autograd.grad(least, copy)
    assert float(gradient.abs().max()) < 1e-9
    assert float((PairAffinity(0.5)(student, target, pair) - least).detach()) > 0.01


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_gradients_are_right_and_lengths_do_not_count(loss: nn.Module, random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, pair = random
    assert torch.autograd.gradcheck(lambda s: loss(s, target, pair), (student,))
    torch.testing.assert_close(loss(3 * student, 2 * target, 5 * pair), loss(student, target, pair))


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_a_batch_without_pairs_costs_nothing_and_moves_nothing(
    loss: nn.Module, random: tuple[Tensor, Tensor, Tensor]
) -> None:
    student, target, pair = random
    value = loss(student, target, torch.zeros_like(pair))
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value.detach()) == 0
    assert not gradient.any()


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_mixed_precision_does_not_touch_the_similarities(
    loss: nn.Module, random: tuple[Tensor, Tensor, Tensor]
) -> None:
    given = [rows.float() for rows in random]
    exact = loss(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*given), exact)


@pytest.mark.parametrize("kind", [ICL, PairAffinity])
def test_temperatures_are_positive(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"expected temperature > 0, found 0\.0"):
        kind(temperature=0.0)


def test_the_sum_hands_each_batchs_pairs_to_those_that_need_them(random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, pair = random
    objective = WeightedSum(["mse", "bank_kl", "icl"], [1, 1, 2], [1, 1, 1], context={"bank": target[:3]})
    total, parts = objective(student, target, pair)
    torch.testing.assert_close(parts["icl"], ICL()(student, target, pair))
    torch.testing.assert_close(total, parts["mse"] + parts["bank_kl"] + 2 * parts["icl"])
    assert needed(["mse", "icl"]) == needed(["pair_affinity"]) == {"pair"}
    with pytest.raises(ValueError, match="loss 'icl' needs each batch's pair, which it did not get"):
        objective(student, target)
