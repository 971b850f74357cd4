"""Losses against a bank of the teacher's embeddings of the other tower."""

from __future__ import annotations

from math import e, log

import pytest
import torch
from torch import Tensor, nn

from clip_distill.losses import WeightedSum, needed
from clip_distill.losses.bank import Affinity, BankKL

EVERY = [BankKL(0.5), Affinity(0.5)]
BANK = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # two anchors at right angles
TARGET, MIDDLE = [5.0, 0.0], [1.0, 1.0]  # on the first anchor, and between the two


def name(loss: nn.Module) -> str:
    return type(loss).__name__


def odds(x: float) -> Tensor:
    return torch.tensor([x / (1 + x), 1 / (1 + x)])


def entropy(p: Tensor) -> float:
    return float(-(p * p.log()).sum())


@pytest.fixture
def random() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), target, torch.randn(9, 6, dtype=torch.float64, generator=generator)


def test_bank_kl_by_hand() -> None:
    """The student is as near to one anchor as to the other; the second sample's teacher says the same of it."""
    student, target = torch.tensor([MIDDLE, MIDDLE]), torch.tensor([TARGET, MIDDLE])
    expected = (log(2) - entropy(odds(e))) / 2
    assert float(BankKL(1.0)(student, target, BANK)) == pytest.approx(expected, abs=1e-6)


def test_teacher_and_student_have_temperatures_of_their_own() -> None:
    """At half the student's temperature the teacher's odds are the square."""
    target = torch.tensor([TARGET])
    p, q = odds(e**2), odds(e)
    found = float(BankKL(1.0, teacher_temperature=0.5)(target, target, BANK))
    assert found == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)
    cross = float(Affinity(1.0, teacher_temperature=0.5)(target, target, BANK))
    assert cross == pytest.approx(float(-(p * q.log()).sum()) / 2, abs=1e-6)  # one sample: sure of it from the bank


def test_affinity_by_hand() -> None:
    """Teacher: a sample on each anchor. Student: both between the anchors, so uniform in both directions."""
    student, target = torch.tensor([MIDDLE, MIDDLE]), torch.tensor([TARGET, [0.0, 1.0]])
    assert float(Affinity(1.0)(student, target, BANK)) == pytest.approx(log(2), abs=1e-6)
    assert float(Affinity(1.0)(target, target, BANK)) == pytest.approx(entropy(odds(e)), abs=1e-6)
    # the second sample in the middle for the teacher as well: both anchors then lean by √½ to one of the samples
    target = torch.tensor([TARGET, MIDDLE])
    to_bank = (entropy(odds(e)) + log(2)) / 2
    from_bank = (entropy(odds(e ** (1 - 0.5**0.5))) + entropy(odds(e ** (0.5**0.5)))) / 2
    assert float(Affinity(1.0)(target, target, BANK)) == pytest.approx((to_bank + from_bank) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_identity_is_the_minimum(loss: nn.Module, random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, bank = random
    copy = target.clone().requires_grad_()
    least = loss(copy, target, bank)
    (gradient,) = torch.autograd.grad(least, copy)
    assert float(gradient.abs().max()) < 1e-9
    assert float((loss(student, target, bank) - least).detach()) > 0.01
    if isinstance(loss, BankKL):
        assert float(least.detach()) == pytest.approx(0, abs=1e-12)


def test_affinity_has_the_gradient_of_half_the_two_kls(random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, bank = random
    forth = BankKL(0.5)(student, target, bank)

    def back(rows: Tensor) -> Tensor:
        return (nn.functional.normalize(bank, dim=-1) @ nn.functional.normalize(rows, dim=-1).T / 0.5).log_softmax(-1)

    p, q = back(target), back(student)
    (both,) = torch.autograd.grad((forth + (p.exp() * (p - q)).sum(-1).mean()) / 2, student)
    (found,) = torch.autograd.grad(Affinity(0.5)(student, target, bank), student)
    torch.testing.assert_close(found, both)


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_gradients_are_right_and_lengths_do_not_count(loss: nn.Module, random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, bank = random
    assert torch.autograd.gradcheck(lambda s: loss(s, target, bank), (student,))
    torch.testing.assert_close(loss(3 * student, 2 * target, 5 * bank), loss(student, target, bank))


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_mixed_precision_does_not_touch_the_similarities(
    loss: nn.Module, random: tuple[Tensor, Tensor, Tensor]
) -> None:
    given = [rows.float() for rows in random]
    exact = loss(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*given), exact)


@pytest.mark.parametrize("kind", [BankKL, Affinity])
def test_temperatures_are_positive(kind: type[nn.Module]) -> None:
    for wrong in ({"temperature": 0.0}, {"teacher_temperature": 0.0}):
        with pytest.raises(ValueError, match=r"expected temperature > 0, found 0\.0"):
            kind(**wrong)


def test_the_sum_hands_the_bank_to_those_that_need_it(random: tuple[Tensor, Tensor, Tensor]) -> None:
    student, target, bank = random
    total, parts = WeightedSum(["mse", "bank_kl"], [1, 2], [1, 1], context={"bank": bank})(student, target)
    expected = BankKL()(student, target, bank)
    torch.testing.assert_close(parts["bank_kl"], expected)
    torch.testing.assert_close(total, (student - target).square().mean() + 2 * expected)


def test_a_bank_moves_with_the_module_and_is_in_no_checkpoint() -> None:
    objective = WeightedSum(["bank_kl"], [1], [1], context={"bank": torch.randn(3, 2)})
    assert objective.to("meta").get_buffer("bank").device.type == "meta"
    assert not objective.state_dict()
    assert not dict(WeightedSum(["mse"], [1], [1], context={"bank": torch.randn(3, 2)}).named_buffers())


def test_what_a_loss_needs_is_known_before_it_is_made_and_missed_when_it_is_not_there() -> None:
    assert needed(["mse", "affinity", "bank_kl"]) == {"bank"}
    assert needed(["mse", "gram_kl"]) == set()
    with pytest.raises(
        ValueError, match=r"loss 'affinity' needs \['bank'\], which it was not given; a run can give bank"
    ):
        WeightedSum(["mse", "affinity"], [1, 1], [1, 1])
