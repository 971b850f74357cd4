"""What the optimiser is given: who decays, and the learning rate at each step."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest

from clip_distill.distill import lr_factor, parameter_groups
from clip_distill.recipe import Optimizer
from clip_distill.students import make_student
from clip_distill.towers import Tower


def schedule(total: int = 100, epoch_steps: int = 10, **options: Any) -> Callable[[int], float]:
    return lr_factor(Optimizer(**options), total, epoch_steps)


@pytest.mark.parametrize(
    ("tower", "name", "options", "spared"),
    [
        (
            "image",
            "vit",
            {"input_resolution": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2},
            {"positional_embedding", "class_embedding"},
        ),
        (
            "text",
            "transformer",
            {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2},
            {"positional_embedding"},
        ),
        ("image", "timm", {"model": "test_vit"}, {"trunk.pos_embed", "trunk.cls_token"}),
        ("image", "timm", {"model": "test_efficientnet"}, set()),
    ],
)
def test_matrices_and_tokens_decay_and_nothing_else(
    tower: Tower,
    name: str,
    options: dict[str, Any],
    spared: set[str],
    make_record: Callable[..., dict[str, Any]],
) -> None:
    _, student = make_student(tower, name, make_record(32), options)
    name_of = {id(parameter): each for each, parameter in student.named_parameters()}
    decayed, plain = ({name_of[id(p)] for p in group["params"]} for group in parameter_groups(student, 0.3))
    assert decayed.isdisjoint(plain)
    assert decayed | plain == set(name_of.values())
    assert spared <= plain
    assert {each for each in plain if student.get_parameter(each).ndim > 1} <= spared
    assert not [each for each in decayed if each.endswith("bias") or ".ln_" in each or ".norm" in each or "bn" in each]
    if tower == "text":
        assert "token_embedding.weight" in decayed
    assert [group["weight_decay"] for group in parameter_groups(student, 0.3)] == [0.3, 0.0]


def test_frozen_parameters_are_left_out(make_record: Callable[..., dict[str, Any]]) -> None:
    options = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
    _, student = make_student("text", None, make_record(32), options)
    student.token_embedding.requires_grad_(False)
    given = [p for group in parameter_groups(student, 0.1) for p in group["params"]]
    assert all(p.requires_grad for p in given)
    assert len(given) == len(list(student.parameters())) - 1


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 10), (10, 10), (10.0, 10), (0, 0), (1, 1)])
def test_the_warm_up_is_linear_and_a_share_below_one(warmup: float, steps: int) -> None:
    factor = schedule(warmup=warmup, schedule="constant")
    assert [factor(step) for step in range(steps)] == pytest.approx([(step + 1) / steps for step in range(steps)])
    assert factor(steps) == factor(99) == 1


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.5), (32.5, 0.5 + 0.5 * cos(pi / 4)), (100, 0.0), (150, 0.0)],
)
def test_cosine_falls_from_the_peak_after_the_warm_up_to_zero(step: int, expected: float) -> None:
    assert schedule(warmup=10)(step) == pytest.approx(expected, abs=1e-12)


def test_cosine_ends_at_the_least_rate_that_is_asked_for() -> None:
    factor = schedule(warmup=0, min_lr=0.2)
    assert [factor(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_steps_come_at_the_ends_of_epochs() -> None:
    factor = schedule(epoch_steps=5, warmup=0, schedule="step", step_epochs=2, step_gamma=0.1)
    assert [factor(step) for step in (0, 9, 10, 19, 20, 29)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_warm_up_longer_than_the_run_never_leaves_the_line() -> None:
    assert [schedule(total=4, warmup=8)(step) for step in range(4)] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])
