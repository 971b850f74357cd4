"""The weighted sum of losses, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clip_distill.losses import LOSSES, WeightedSum
from clip_distill.losses.feature import KL, L1, MSE

STUDENT, TARGET, BANK, PAIR = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))


def test_the_sum_takes_names_weights_and_scales_in_the_same_order() -> None:
    total, parts = WeightedSum(["l1", "kl", "mse"], [1, 2, 3], [10, 100, 0.5], {"kl": {"temperature": 2}})(
        STUDENT, TARGET
    )
    l1, kl, mse = L1()(STUDENT, TARGET), KL(2)(STUDENT, TARGET), MSE()(STUDENT, TARGET)
    torch.testing.assert_close(total, 1 * 10 * l1 + 2 * 100 * kl + 3 * 0.5 * mse)
    assert list(parts) == ["l1", "kl", "mse"]
    for found, expected in zip(parts.values(), (l1, kl, mse), strict=True):
        torch.testing.assert_close(found, expected)  # before its factor


def test_permuting_the_three_lists_together_changes_nothing() -> None:
    one, _ = WeightedSum(["l1", "mse"], [0.7, 0.1], [2, 3])(STUDENT, TARGET)
    other, _ = WeightedSum(["mse", "l1"], [0.1, 0.7], [3, 2])(STUDENT, TARGET)
    wrong, _ = WeightedSum(["mse", "l1"], [0.7, 0.1], [2, 3])(STUDENT, TARGET)
    torch.testing.assert_close(one, other)
    assert not torch.isclose(one, wrong)


def test_every_loss_in_the_table_gives_a_scalar_that_trains() -> None:
    names = list(LOSSES)
    student = STUDENT.clone().requires_grad_()
    ones = [1.0] * len(names)
    total, parts = WeightedSum(names, ones, ones, context={"bank": BANK})(student, TARGET, PAIR)
    for name, part in {**parts, "sum": total}.items():
        (gradient,) = torch.autograd.grad(part, student, retain_graph=True)
        assert part.ndim == 0, name
        assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize(
    ("names", "weights", "scales", "options", "message"),
    [
        ([], [], [], {}, "found 0 names"),
        (["l1", "kl"], [1], [1, 1], {}, r"found 2 names \['l1', 'kl'\], 1 weights \[1\] and 2 scales"),
        (["l1"], [1], [1, 2], {}, "1 names .* 2 scales"),
        (["l1", "mse", "l1"], [1, 1, 1], [1, 1, 1], {}, "each loss once"),
        (["l1"], [1], [1], {"kl": {"temperature": 2}}, r"options are given for \['kl'\], but the losses are \['l1'\]"),
        (["kl"], [1], [1], {"kl": {"heat": 2}}, "'kl' does not take the options .*heat"),
        (["kl"], [1], [1], {"kl": {"temperature": 0}}, "expected temperature > 0"),
        (["huber"], [1], [1], {}, "unknown loss 'huber': expected one of .*ce, cosine"),
    ],
)
def test_what_does_not_fit_is_refused(
    names: list[str], weights: list[float], scales: list[float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSum(names, weights, scales, options)
