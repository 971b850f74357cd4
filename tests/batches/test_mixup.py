"""Mixup: pixels and targets of a batch, mixed by the same share with the same partner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_distill.batches.datasets import Batch
from clip_distill.batches.mixup import mix, mix_embeddings, mix_pixels
from clip_distill.pixels.views import normalise

CONSTANTS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def batch(size: int = 6) -> Batch:
    torch.manual_seed(0)
    pixels = torch.randint(256, (size, 3, 4, 4), dtype=torch.uint8)
    return Batch(pixels, torch.randn(size, 5), pixels, torch.arange(size))


def test_pixels_and_targets_are_mixed_with_the_same_partner_by_the_same_share() -> None:
    plain, mixed = batch(), mix(batch(), 1.0, [3, 1])
    random = np.random.default_rng([3, 1])
    share, partner = random.beta(1, 1), random.permutation(6)
    expected = share * plain.inputs.float() + (1 - share) * plain.inputs[partner].float()
    torch.testing.assert_close(mixed.inputs, expected, atol=1e-4, rtol=1e-5)
    assert plain.target is not None and mixed.target is not None and mixed.teacher_inputs is not None
    torch.testing.assert_close(mixed.target, mix_embeddings(plain.target, torch.from_numpy(partner), share))
    assert torch.equal(mixed.teacher_inputs, mixed.inputs)
    assert mixed.teacher_inputs is not mixed.inputs  # normalising one in place must not reach the other
    assert torch.equal(mixed.rows, plain.rows)


def test_the_key_alone_decides() -> None:
    first, again, other = (mix(batch(), 0.4, key).inputs for key in ([0, 7], [0, 7], [0, 8]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_normalising_a_mix_gives_the_mix_of_normalised_images() -> None:
    pixels, partner = batch().inputs, torch.tensor([1, 2, 3, 4, 5, 0])
    mixed = normalise(mix_pixels(pixels, partner, 0.3), CONSTANTS)
    apart = normalise(pixels, CONSTANTS)
    torch.testing.assert_close(mixed, 0.3 * apart + 0.7 * apart[partner], atol=1e-5, rtol=1e-4)


def test_a_mixed_target_points_between_the_two_and_is_as_long_as_the_mean_of_their_lengths() -> None:
    target = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    mixed = mix_embeddings(target, torch.tensor([1, 0]), 0.75)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.tensor([2.5, 1.5]))
    torch.testing.assert_close(F.normalize(mixed, dim=-1)[0], F.normalize(torch.tensor([0.75, 0.25]), dim=0))


@pytest.mark.parametrize(("share", "row"), [(1.0, [0, 1]), (0.0, [1, 0])])
def test_a_share_of_one_or_none_is_one_of_the_two(share: float, row: list[int]) -> None:
    target, pixels = torch.randn(2, 4), torch.randint(256, (2, 3, 2, 2), dtype=torch.uint8)
    partner = torch.tensor([1, 0])
    torch.testing.assert_close(mix_embeddings(target, partner, share), target[row])
    torch.testing.assert_close(mix_pixels(pixels, partner, share), pixels[row].float())
