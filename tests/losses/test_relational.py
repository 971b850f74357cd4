"""Losses between the samples of a batch, by numbers that fit on paper."""

from __future__ import annotations

from math import e, log, sqrt

import pytest
import torch
from torch import Tensor, nn

from clip_distill.losses.relational import GramKL, InfoNCE, RKDDistance

ROWS, WIDTH = 6, 5
EVERY = [GramKL(), GramKL(0.5, teacher_temperature=0.1), InfoNCE(0.5), RKDDistance()]


def name(loss: nn.Module) -> str:
    return type(loss).__name__


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, target = torch.randn(2, ROWS, WIDTH, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), target


def test_gram_kl_by_hand() -> None:
    """Teacher: two samples agree, the third is at right angles. Student: all alike, so uniform."""
    target = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    student = torch.ones(3, 2)
    p = torch.tensor([e / (1 + e), 1 / (1 + e)])  # of the agreeing one and of the other
    entropy = float(-(p * p.log()).sum())
    expected = 2 / 3 * (log(2) - entropy)  # the third sample's two similarities are equal, as the student says
    assert float(GramKL(1.0)(student, target)) == pytest.approx(expected, abs=1e-6)


def test_the_teacher_of_gram_kl_may_have_a_temperature_of_its_own() -> None:
    """At half the student's temperature the teacher's odds are the square."""
    target = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    p, q = (torch.tensor([x / (1 + x), 1 / (1 + x)]) for x in (e**2, e))
    expected = 2 / 3 * float((p * (p / q).log()).sum())
    assert float(GramKL(1.0, teacher_temperature=0.5)(target, target)) == pytest.approx(expected, abs=1e-6)
    assert float(GramKL(1.0)(target, target)) == pytest.approx(0, abs=1e-7)


def test_infonce_by_hand() -> None:
    """The first is where its teacher is, at right angles to the other; the second is at 45° to both."""
    student, target = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    expected = (log(1 + e**-2) + log(2)) / 2  # temperature ½: odds of e² and of 1
    assert float(InfoNCE(0.5)(student, target)) == pytest.approx(expected, abs=1e-6)


def test_infonce_is_least_where_each_sample_finds_its_own() -> None:
    student, target = samples()
    right = float(InfoNCE()(target, target))
    assert 0 < right < 0.2
    assert float(InfoNCE()(target.roll(1, 0), target)) > right + 1
    assert float(InfoNCE()(student.detach(), target)) > right + 1


def test_rkd_distance_by_hand() -> None:
    """Teacher: a right angle and its middle, distances √2, c, c. Student: two in one place, distances 0, √2, √2."""
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    student = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    c = sqrt(2 - sqrt(2))
    mean = (sqrt(2) + 2 * c) / 3
    first, others = sqrt(2) / mean, c / mean
    expected = ((first - 0.5) + 2 * 0.5 * (1.5 - others) ** 2) / 3  # the first differs by more than 1
    assert float(RKDDistance()(student, target)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [GramKL(), RKDDistance()], ids=name)
def test_a_rotated_and_scaled_teacher_is_a_perfect_student(loss: nn.Module) -> None:
    student, target = samples()
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    assert float(loss(3 * target @ rotation, target)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student.detach(), target)) > 0.01
    torch.testing.assert_close(loss(student @ rotation, target), loss(student, target))


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_gradients_are_right_and_lengths_do_not_count(loss: nn.Module) -> None:
    student, target = samples()
    assert torch.autograd.gradcheck(lambda s: loss(s, target), (student,))
    torch.testing.assert_close(loss(3 * student, 2 * target), loss(student, target))


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_a_batch_of_one_has_nothing_to_learn_and_breaks_nothing(loss: nn.Module) -> None:
    student = torch.randn(1, WIDTH, requires_grad=True)
    value = loss(student, torch.randn(1, WIDTH))
    (gradient,) = torch.autograd.grad(value, student)
    assert (float(value.detach()), float(gradient.abs().max())) == (0.0, 0.0)


@pytest.mark.parametrize("loss", [GramKL(), RKDDistance()], ids=name)
def test_a_student_that_puts_all_samples_in_one_place_breaks_nothing(loss: nn.Module) -> None:
    student, target = torch.ones(4, WIDTH, requires_grad=True), torch.randn(4, WIDTH)
    (gradient,) = torch.autograd.grad(loss(student, target), student)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_mixed_precision_does_not_touch_the_similarities(loss: nn.Module) -> None:
    student, target = (rows.float() for rows in samples())
    exact = loss(student, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student, target), exact)


def test_temperatures_are_positive() -> None:
    with pytest.raises(ValueError, match="infonce: expected temperature > 0, found 0"):
        InfoNCE(0)
    with pytest.raises(ValueError, match="gram_kl: expected temperature > 0, found -1"):
        GramKL(0.1, teacher_temperature=-1)
