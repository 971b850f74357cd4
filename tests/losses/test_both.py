"""Losses between two students."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from clip_distill.losses import WeightedSum
from clip_distill.losses.both import BothAffinity, BothInfoNCE, BothSum

EVERY = [BothAffinity(0.5), BothInfoNCE(0.5)]
APART = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # two at right angles
DIFFERENT = torch.tensor([[0, 0], [1, 1]])  # pairs of different photos and captions


def name(loss: nn.Module) -> str:
    return type(loss).__name__


@pytest.fixture
def random() -> tuple[Tensor, ...]:
    """image, text, image_target, text_target [5, 6], and pairs, two of which are of one photo."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 5, 6, dtype=torch.float64, generator=generator)
    return (*rows, torch.tensor([[0, 0], [0, 1], [1, 2], [2, 3], [3, 4]]))


def test_both_affinity_by_hand() -> None:
    """Teacher: each photo on its caption. Students: all at one place, so uniform over both."""
    one, p = torch.ones(2, 2), 1 / (1 + exp(-1))
    expected = p * log(2 * p) + (1 - p) * log(2 * (1 - p))  # KL to the uniform, of each row and each column
    assert float(BothAffinity(1.0)(one, one, APART, APART, DIFFERENT)) == pytest.approx(expected, abs=1e-6)


def test_both_affinity_is_the_mean_over_rows_and_columns() -> None:
    """The second caption lies between the photos: each photo's view of the captions is not the captions' of it."""
    text = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    half = 0.5**0.5
    teacher, students = torch.eye(2).double(), torch.tensor([[1, half], [0, half]], dtype=torch.float64)
    parts = []
    for theirs, own in ((teacher, students), (teacher.T, students.T)):
        p, q = theirs.softmax(dim=1), own.softmax(dim=1)
        parts.append(float((p * (p / q).log()).sum() / 2))
    assert parts[0] != pytest.approx(parts[1], abs=0.01)
    found = float(BothAffinity(1.0)(APART, text, APART, APART, DIFFERENT))
    assert found == pytest.approx(sum(parts) / 2, abs=1e-6)


def test_both_affinity_is_zero_and_least_where_the_students_agree_as_the_teacher_does(
    random: tuple[Tensor, ...],
) -> None:
    image, text, image_target, text_target, pairs = random
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    for students in ((image_target, text_target), (image_target @ turn, text_target @ turn)):
        leaves = [each.clone().requires_grad_() for each in students]
        loss = BothAffinity(0.5)(*leaves, image_target, text_target, pairs)
        gradients = torch.autograd.grad(loss, leaves)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        assert max(float(each.abs().max()) for each in gradients) < 1e-9
    assert float(BothAffinity(0.5)(image, text, image_target, text_target, pairs)) > 0.01


def test_both_infonce_by_hand() -> None:
    """The first pair is together, the second caption lies between the two photos."""
    text = torch.tensor([[5.0, 0.0], [1.0, 1.0]])
    half = 0.5**0.5
    photos = log(1 + exp(half - 1)), log(1 + exp(-half))  # the first photo's captions, the second's
    captions = log(1 + exp(-1)), log(2)
    expected = sum((*photos, *captions)) / 4
    assert float(BothInfoNCE(1.0)(APART, text, APART, APART, DIFFERENT)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("column", [0, 1], ids=["photo", "caption"])
def test_pairs_with_the_same_photo_or_caption_are_no_wrong_answers(random: tuple[Tensor, ...], column: int) -> None:
    image, text, *targets, _ = random
    pairs = torch.arange(5)[:, None].repeat(1, 2)
    pairs[1, column] = pairs[0, column]
    loss = BothInfoNCE(0.5)
    cosines = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T / 0.5
    parts = []
    for b in range(5):
        wrong = [j for j in range(5) if j != b and {b, j} != {0, 1}]
        for own in (cosines[b], cosines[:, b]):
            parts.append(log(float(own[b].exp() + own[wrong].exp().sum())) - float(own[b]))
    assert float(loss(image, text, *targets, pairs)) == pytest.approx(sum(parts) / 10)
    same = torch.zeros(5, 2, dtype=torch.int64)
    assert float(loss(image, text, *targets, same)) == 0  # no wrong answer is left


def test_both_infonce_is_less_where_pairs_are_together(random: tuple[Tensor, ...]) -> None:
    image, text, *targets, pairs = random
    loss = BothInfoNCE(0.5)
    assert float(loss(image, image, *targets, pairs)) < float(loss(image, text, *targets, pairs))


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_gradients_are_right_and_lengths_do_not_count(loss: nn.Module, random: tuple[Tensor, ...]) -> None:
    image, text, image_target, text_target, pairs = random
    leaves = image.clone().requires_grad_(), text.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda i, t: loss(i, t, image_target, text_target, pairs), leaves)
    longer = loss(2 * image, 3 * text, 4 * image_target, 5 * text_target, pairs)
    torch.testing.assert_close(longer, loss(*random))


@pytest.mark.parametrize("loss", EVERY, ids=name)
def test_mixed_precision_does_not_touch_the_similarities(loss: nn.Module, random: tuple[Tensor, ...]) -> None:
    given = [*(rows.float() for rows in random[:4]), random[4]]
    exact = loss(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*given), exact)


@pytest.mark.parametrize("kind", [BothAffinity, BothInfoNCE])
def test_temperatures_are_positive(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"expected temperature > 0, found 0\.0"):
        kind(temperature=0.0)


def test_the_sum_adds_each_towers_losses_and_those_between(random: tuple[Tensor, ...]) -> None:
    image, text, image_target, text_target, _ = random
    image_side, text_side = (WeightedSum(["cosine", "icl"], [1, 0.5], [1, 2]) for _ in range(2))
    objective = BothSum(image_side, text_side, {"both_affinity": 3.0}, {"both_affinity": {"temperature": 0.5}})
    total, parts = objective(*random)
    assert list(parts) == ["image_cosine", "image_icl", "text_cosine", "text_icl", "both_affinity"]
    own = image_side(image, image_target, text_target)[0] + text_side(text, text_target, image_target)[0]
    torch.testing.assert_close(parts["both_affinity"], BothAffinity(0.5)(*random))
    torch.testing.assert_close(total, own + 3 * parts["both_affinity"])
