"""The loss against a queue: what it compares with, how the queue moves on, and that it can be saved."""

from __future__ import annotations

from math import e, log

import pytest
import torch
from torch import Tensor

from clip_distill.losses import WeightedSum
from clip_distill.losses.queue import QueueKL
from clip_distill.losses.similarity import kl, scaled_cosines


def batches(count: int, rows: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(2, rows, 4, dtype=torch.float64, generator=generator)) for _ in range(count)]


def test_value_by_hand() -> None:
    """After a batch at right angles to this one: two places, and a student between them."""
    loss = QueueKL(size=1, temperature=1.0)
    earlier, now, student = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert float(loss(student, earlier)) == 0  # its own teacher is all there is yet
    p = torch.tensor([e / (1 + e), 1 / (1 + e)])
    assert float(loss(student, now)) == pytest.approx(log(2) + float((p * p.log()).sum()), abs=1e-6)


def test_it_compares_with_this_batch_and_the_last_rows_before_it() -> None:
    loss = QueueKL(size=4)
    for index, (student, target) in enumerate(batches(4)):
        found = loss(student, target)
        before = torch.cat([target for _, target in reversed(batches(4)[:index])])[:4] if index else target[:0]
        others = torch.cat([target, before])
        assert len(others) == [3, 6, 7, 7][index]
        expected = kl(scaled_cosines(target, others, 0.07), scaled_cosines(student, others, 0.07))
        torch.testing.assert_close(found, expected)


def test_a_queue_of_none_is_the_batch_alone() -> None:
    loss = QueueKL(size=0)
    (student, target), other = batches(2)
    first = loss(student, target)
    loss(*other)
    assert torch.equal(loss(student, target), first)
    assert len(loss.queue) == 0


def test_the_queue_does_not_move_on_outside_training() -> None:
    loss = QueueKL()
    loss(*batches(1)[0])
    loss.eval()(*batches(2)[1])
    assert torch.equal(loss.queue, batches(1)[0][1])


def test_a_saved_queue_goes_on_in_a_fresh_loss() -> None:
    whole, cut = (WeightedSum(["queue_kl"], [1], [1], {"queue_kl": {"size": 4}}) for _ in range(2))
    *earlier, last = batches(3)
    for batch in earlier:
        whole(*batch)
    state = whole.state_dict()
    assert list(state) == ["losses.0._extra_state"]
    cut.load_state_dict(state)
    assert torch.equal(cut(*last)[0], whole(*last)[0])


def test_identity_is_the_minimum_and_gradients_are_right() -> None:
    loss = QueueKL(temperature=0.5)
    earlier, (student, target) = batches(2)
    loss(*earlier)
    loss.eval()
    copy = target.clone().requires_grad_()
    least = loss(copy, target)
    (gradient,) = torch.autograd.grad(least, copy)
    assert float(least.detach()) == pytest.approx(0, abs=1e-12)
    assert float(gradient.abs().max()) < 1e-9
    assert float(loss(student, target)) > 0.01
    torch.testing.assert_close(loss(3 * student, 2 * target), loss(student, target))
    assert torch.autograd.gradcheck(lambda rows: loss(rows, target), (student.requires_grad_(),))


def test_teacher_and_student_have_temperatures_of_their_own() -> None:
    earlier, now = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    loss = QueueKL(temperature=1.0, teacher_temperature=0.5)
    loss(earlier, earlier)
    p, q = (torch.tensor([x / (1 + x), 1 / (1 + x)]) for x in (e**2, e))
    assert float(loss(now, now)) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="queue_kl: expected size >= 0, found -1"):
        QueueKL(size=-1)
    with pytest.raises(ValueError, match="queue_kl: expected temperature > 0, found 0"):
        QueueKL(temperature=0)
