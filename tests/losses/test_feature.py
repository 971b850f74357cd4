"""Losses between one student embedding and one teacher embedding, by numbers that fit on paper."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor, nn

from clip_distill.losses.feature import KL, L1, MSE, Cosine, CrossEntropy
from clip_distill.losses.relational import GramKL

S, T = [[3.0, 4.0]], [[4.0, 3.0]]  # lengths 5, cosine 24/25
Q, P = [[0.0, 0.0]], [[0.0, log(3.0)]]  # as distributions ½ ½ and ¼ ¾
H = -0.25 * log(0.25) - 0.75 * log(0.75)  # entropy of P
EVERY = [L1(), L1(normalize=True), MSE(), MSE(normalize=True), Cosine(), CrossEntropy(), KL(2.0), GramKL(0.5)]


def name(loss: nn.Module) -> str:
    return type(loss).__name__ + ("-normalised" if getattr(loss, "normalize", False) else "")


@pytest.fixture
def random() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 5, 6, dtype=torch.float64, generator=generator)
    return student, target


@pytest.mark.parametrize(
    ("loss", "student", "target", "value"),
    [
        (L1(), S, T, 1.0),
        (L1(normalize=True), S, T, 0.2),
        (MSE(), S, T, 1.0),
        (MSE(normalize=True), S, T, 0.04),
        (Cosine(), S, T, 0.04),
        (Cosine(), [[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [0.0, 1.0]], 1.0),  # opposite and equal: the mean of 2 and 0
        (CrossEntropy(), Q, P, log(2)),
        (KL(1.0), Q, P, log(2) - H),
        (KL(2.0), Q, [[0.0, 2 * log(3.0)]], 4 * (log(2) - H)),
        (KL(1.0), Q * 2, P + Q, (log(2) - H) / 2),  # the mean over the batch, not the sum
    ],
)
def test_values_by_hand(loss: nn.Module, student: list[list[float]], target: list[list[float]], value: float) -> None:
    assert float(loss(torch.tensor(student), torch.tensor(target))) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_identity_is_the_minimum(loss: nn.Module, random: tuple[Tensor, Tensor]) -> None:
    student, target = random
    p = target.softmax(-1)
    least = float(-(p * p.log()).sum(-1).mean()) if isinstance(loss, CrossEntropy) else 0.0
    assert float(loss(target, target)) == pytest.approx(least, abs=1e-12)
    assert float(loss(student, target)) > least + 0.01
    copy = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(copy, target), copy)
    assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_gradients_are_right(loss: nn.Module, random: tuple[Tensor, Tensor]) -> None:
    student, target = random
    assert torch.autograd.gradcheck(lambda s: loss(s, target), (student.requires_grad_(),))


@pytest.mark.parametrize("loss", [CrossEntropy(), KL()], ids=name)
def test_a_perfect_student_is_told_from_a_random_one(loss: nn.Module) -> None:
    """A softmax before a loss that applies its own leaves a thousandth between them."""
    student, target = 3 * torch.randn(2, 64, 512, generator=torch.Generator().manual_seed(0))
    assert float(loss(student, target) - loss(target, target)) > 0.5


@pytest.mark.parametrize(
    ("loss", "free_of_length"),
    [
        (L1(), False),
        (L1(normalize=True), True),
        (MSE(), False),
        (MSE(normalize=True), True),
        (Cosine(), True),
        (CrossEntropy(), False),
        (KL(), False),
    ],
    ids=lambda value: name(value) if isinstance(value, nn.Module) else "",
)
def test_what_a_loss_does_to_lengths_is_what_it_says(
    loss: nn.Module, free_of_length: bool, random: tuple[Tensor, Tensor]
) -> None:
    student, target = random
    same = torch.isclose(loss(3 * student, target), loss(student, target))
    assert bool(same) is free_of_length


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperatures_are_positive(temperature: float) -> None:
    for loss in (KL, GramKL):
        with pytest.raises(ValueError, match=f"expected temperature > 0, found {temperature}"):
            loss(temperature)
