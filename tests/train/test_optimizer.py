"""What the optimiser is given: who decays, and the learning rate at each step."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest
import torch

from clip_distill.recipe import Optimizer
from clip_distill.students import make_student
from clip_distill.towers.spec import Tower
from clip_distill.train.optimizer import lr_factor, make_optimizer, parameter_groups


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
    decayed, plain = (
        {name_of[id(p)] for p in group["params"]} for group in parameter_groups(student, Optimizer(weight_decay=0.3))
    )
    assert decayed.isdisjoint(plain)
    assert decayed | plain == set(name_of.values())
    assert spared <= plain
    assert {each for each in plain if student.get_parameter(each).ndim > 1} <= spared
    assert not [each for each in decayed if each.endswith("bias") or ".ln_" in each or ".norm" in each or "bn" in each]
    if tower == "text":
        assert "token_embedding.weight" in decayed
    assert [group["weight_decay"] for group in parameter_groups(student, Optimizer(weight_decay=0.3))] == [0.3, 0.0]


def test_frozen_parameters_are_left_out(make_record: Callable[..., dict[str, Any]]) -> None:
    options = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
    _, student = make_student("text", None, make_record(32), options)
    student.token_embedding.requires_grad_(False)
    given = [p for group in parameter_groups(student, Optimizer()) for p in group["params"]]
    assert all(p.requires_grad for p in given)
    assert len(given) == len(list(student.parameters())) - 1


@pytest.mark.parametrize(
    ("tower", "name", "options", "rates"),
    [
        (
            "text",
            "transformer",
            {"transformer_width": 16, "transformer_layers": 2, "transformer_heads": 2},
            {"token_embedding.weight": 1 / 8, "positional_embedding": 1 / 8, "transformer.resblocks.0.ln_1.bias": 1 / 4}
            | {"transformer.resblocks.1.mlp.c_fc.weight": 1 / 2, "ln_final.weight": 1, "text_projection": 1},
        ),
        (
            "image",
            "timm_cut",
            {"model": "tf_efficientnet_lite0", "depths": [1, 2], "hidden": 8},
            {"trunk.conv_stem.weight": 1 / 16, "trunk.bn1.weight": 1 / 16, "trunk.blocks.0.0.bn1.bias": 1 / 8}
            | {"trunk.blocks.1.0.bn1.bias": 1 / 4, "trunk.blocks.1.1.conv_pwl.weight": 1 / 2, "head.1.weight": 1},
        ),
        (
            "image",
            "timm",
            {"model": "test_vit"},
            {"trunk.cls_token": 1 / 128, "trunk.blocks.0.norm1.bias": 1 / 64, "trunk.norm.bias": 1 / 2}
            | {"head.proj.weight": 1},
        ),
    ],
)
def test_each_layer_trains_at_a_share_of_the_rate_above_it(
    tower: Tower,
    name: str,
    options: dict[str, Any],
    rates: dict[str, float],
    make_record: Callable[..., dict[str, Any]],
) -> None:
    _, student = make_student(tower, name, make_record(32), options)
    groups = make_optimizer(student, Optimizer(lr=8.0, layer_decay=0.5), fused=False).param_groups
    rate_of = {id(parameter): group["lr"] / 8 for group in groups for parameter in group["params"]}
    assert len(rate_of) == len(list(student.parameters()))
    assert {each: rate_of[id(student.get_parameter(each))] for each in rates} == pytest.approx(rates)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    plain = {id(p): g["weight_decay"] for g in parameter_groups(student, Optimizer()) for p in g["params"]}
    assert decays == plain


def test_layer_wise_rates_need_layers_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"whose order of layers is known; found Linear"):
        parameter_groups(torch.nn.Linear(2, 2), Optimizer(layer_decay=0.5))


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
