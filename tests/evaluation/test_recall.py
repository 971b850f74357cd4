"""Ranks and recall against hand-made matrices and a plain-Python oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clip_distill.evaluation.recall import mean_cosine, neighbour_overlap, retrieval_metrics, retrieval_ranks


def unit(degrees: list[float]) -> Tensor:
    """Points on the circle: cosines are those of the angles between them."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_ranks_of_a_hand_made_case() -> None:
    images = unit([0, 90, 200])
    texts = unit([10, 50, 80, 30])
    owner = torch.tensor([0, 0, 1, 1])  # the third photo has no caption
    text_to_image, image_to_text = retrieval_ranks(images, texts, owner)
    # 10° and 80° are nearest their own photo, 50° is nearer to 90° than to 0°, 30° nearer to 0° than to 90°
    assert text_to_image.tolist() == [1, 2, 1, 2]
    assert image_to_text.tolist() == [1, 1]


def test_metrics_of_a_hand_made_case() -> None:
    metrics = retrieval_metrics(unit([0, 90, 200]), unit([10, 50, 80, 30]), torch.tensor([0, 0, 1, 1]))
    assert metrics["t2i_r1"] == 50 and metrics["t2i_r5"] == 100 and metrics["t2i_median_rank"] == 1.5
    assert metrics["i2t_r1"] == 100 and metrics["i2t_median_rank"] == 1
    assert metrics["mean_recall"] == pytest.approx((50 + 5 * 100) / 6)


def test_embeddings_are_normalised_inside() -> None:
    images, texts, owner = unit([0, 90, 200]), unit([10, 50, 80, 30]), torch.tensor([0, 0, 1, 1])
    long = retrieval_ranks(images * torch.tensor([[5.0], [0.1], [300.0]]), texts * 7, owner)
    assert [ranks.tolist() for ranks in long] == [ranks.tolist() for ranks in retrieval_ranks(images, texts, owner)]


@pytest.mark.parametrize("vector", [[0.1, 0.7, -0.3], [0.0, 0.0, 0.0]])
def test_a_constant_model_gets_the_worst_rank(vector: list[float]) -> None:
    owner = torch.arange(20).repeat_interleave(3)
    text_to_image, image_to_text = retrieval_ranks(torch.tensor([vector] * 20), torch.tensor([vector] * 60), owner)
    assert set(text_to_image.tolist()) == {20}
    assert set(image_to_text.tolist()) == {58}  # all 57 captions of the other photos tie with its own


def test_one_tie_costs_one_rank() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the second photo is the first one's double
    texts = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    text_to_image, image_to_text = retrieval_ranks(images, texts, torch.tensor([0, 2]))
    assert text_to_image.tolist() == [2, 1]
    assert image_to_text.tolist() == [1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error(bad: float) -> None:
    good, broken, owner = torch.eye(3), torch.eye(3), torch.arange(3)
    broken[1, 2] = bad
    with pytest.raises(ValueError, match="image embeddings: .* 1 of 3 rows"):
        retrieval_metrics(broken, good, owner)
    with pytest.raises(ValueError, match="text embeddings: .* 1 of 3 rows"):
        retrieval_metrics(good, broken, owner)
    with pytest.raises(ValueError, match="second embeddings"):
        mean_cosine(good, broken)


@pytest.mark.parametrize(
    ("images", "texts", "owner", "message"),
    [
        (torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3]), "rows of the 3 images, found 0 to 3"),
        (torch.eye(3), torch.eye(3), torch.tensor([0, -1, 2]), "found -1 to 2"),
        (torch.eye(3), torch.eye(3), torch.tensor([0, 1]), "each of 3 captions"),
        (torch.eye(3), torch.eye(3), torch.tensor([0.0, 1.0, 2.0]), "expected an integer"),
        (torch.eye(3), torch.eye(4)[:3], torch.arange(3), "one width"),
        (torch.eye(3), torch.empty(0, 3), torch.arange(0), "at least one row"),
    ],
)
def test_input_that_does_not_fit_is_an_error(images: Tensor, texts: Tensor, owner: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(images, texts, owner)


def cosine(a: list[float], b: list[float]) -> float:
    length = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def naive_ranks(images: list[list[float]], texts: list[list[float]], owner: list[int]) -> tuple[list[int], list[int]]:
    def at_least(score: float, best: float) -> bool:
        return score > best or math.isclose(score, best, abs_tol=1e-9)

    text_to_image = []
    for text, own in zip(texts, owner, strict=True):
        best = cosine(text, images[own])
        wrong = [image for i, image in enumerate(images) if i != own]
        text_to_image.append(1 + sum(at_least(cosine(text, image), best) for image in wrong))
    image_to_text = []
    for i, image in enumerate(images):
        scores = [(cosine(text, image), own == i) for text, own in zip(texts, owner, strict=True)]
        if any(right for _, right in scores):
            best = max(score for score, right in scores if right)
            image_to_text.append(1 + sum(at_least(score, best) for score, right in scores if not right))
    return text_to_image, image_to_text


# small whole numbers, so that ties, doubles and rows of zeros are common
vectors = st.lists(st.integers(-2, 2).map(float), min_size=3, max_size=3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[int]]:
    images = draw(st.lists(vectors, min_size=1, max_size=8))
    owner = draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=16))
    texts = draw(st.lists(vectors, min_size=len(owner), max_size=len(owner)))
    return images, texts, owner


@settings(max_examples=200, deadline=None)
@given(case=cases(), chunk=st.integers(1, 20))
def test_ranks_equal_the_naive_oracle_for_any_chunk(
    case: tuple[list[list[float]], list[list[float]], list[int]], chunk: int
) -> None:
    images, texts, owner = case
    found = retrieval_ranks(torch.tensor(images), torch.tensor(texts), torch.tensor(owner), chunk)
    assert tuple(ranks.tolist() for ranks in found) == naive_ranks(images, texts, owner)


def test_metrics_do_not_depend_on_the_chunk_or_half_precision_mode() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 16, generator=generator)
    owner = torch.arange(250) % 50
    texts = images[owner] + 2 * torch.randn(250, 16, generator=generator)
    whole = retrieval_metrics(images, texts, owner)
    assert 0 < whole["t2i_r1"] < 100
    assert retrieval_metrics(images, texts, owner, chunk=7) == whole
    with torch.autocast("cpu", torch.bfloat16):
        assert retrieval_metrics(images, texts, owner) == whole


def test_mean_cosine() -> None:
    assert mean_cosine(unit([0, 90]), 3 * unit([60, 90])) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="found 2 and 3 rows"):
        mean_cosine(unit([0, 90]), unit([0, 90, 180]))


def test_neighbour_overlap() -> None:
    row = unit([0, 10, 100, 110, 200])
    assert neighbour_overlap(row, row * 5, k=2) == 1
    # the nearest of 0 10 100 110 200 are 10 0 110 100 110; with 10 and 100 swapped only the last row agrees
    assert neighbour_overlap(row, unit([0, 100, 10, 110, 200]), k=1) == pytest.approx(1 / 5)
    assert neighbour_overlap(row, row.flip(0), k=10) == 1  # with k = N - 1 everyone is a neighbour
    with pytest.raises(ValueError, match="at least 2 rows"):
        neighbour_overlap(row[:1], row[:1])
