"""The LightningModule by itself: which tower runs when, and in which mode its parts are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clip_distill.recipe import Loss, Optimizer, Recipe, Student
from clip_distill.students import make_student
from clip_distill.train.assemble import make_objective
from clip_distill.train.distill import Distiller
from clip_distill.train.training import require_compiler
from clip_distill.train.validation import Validation


@pytest.fixture
def distiller(make_record: Callable[..., dict[str, Any]]) -> Distiller:
    """Of an image student with batch norms, that averages its weights and does not train its stem and first stage."""
    torch.manual_seed(0)
    options = {"model": "test_efficientnet", "input_resolution": 32, "hidden": 8}
    spec, student = make_student("image", "timm_cut", make_record(16), options)
    none = torch.empty(0, 16)
    rows = torch.empty(0, dtype=torch.int64)
    module = Distiller(spec, student, make_objective(Loss()), Optimizer(), Validation("image", none, none, rows, rows))
    module.prepare(Recipe("image", None, "store", "out", student=Student(freeze=1), ema=0.9))
    return module


def test_what_is_frozen_and_the_average_stay_in_eval_mode(distiller: Distiller) -> None:
    for module in (distiller.train(), distiller.eval().train()):
        trunk = module.student.get_submodule("trunk")
        assert not any(each.training for part in (trunk.bn1, trunk.blocks[0]) for each in part.modules())
        assert all(each.training for each in trunk.blocks[1].modules())
        assert module.average is not None and not any(each.training for each in module.average.modules())
    assert not any(each.training for each in distiller.eval().modules())


def test_training_runs_the_student_and_validation_its_average(distiller: Distiller) -> None:
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert distiller.average is not None and distiller.trained is distiller.average.module
    with torch.no_grad():
        for parameter in distiller.average.parameters():
            parameter.zero_()
        assert distiller.train()(pixels).abs().sum() > 0
        assert distiller.eval()(pixels).abs().sum() == 0
    assert not any(parameter.requires_grad for parameter in distiller.average.parameters())
    assert distiller.train()(pixels).requires_grad


def test_a_student_in_half_precision_takes_pixels(distiller: Distiller) -> None:
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    exact = distiller.eval()(pixels)
    half = distiller.to(torch.bfloat16)(pixels)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float(), exact).min() > 0.99


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_gradients_are_clipped_to_a_norm_as_torch_clips_them(distiller: Distiller, share: float) -> None:
    trained = [each for each in distiller.student.parameters() if each.requires_grad]
    for each in trained:
        each.grad = torch.randn_like(each)
    whole = [each.grad.clone() for each in trained if each.grad is not None]
    most = share * torch.cat([each.flatten() for each in whole]).norm().item()
    distiller.configure_gradient_clipping(torch.optim.SGD(trained), most, "norm")
    found = [each.grad for each in trained if each.grad is not None]
    torch.testing.assert_close(found, [min(1.0, share) * each for each in whole])


def test_a_step_draws_by_its_place_alone(distiller: Distiller) -> None:
    drawn = []
    for index in (3, 4, 3):
        distiller.on_train_batch_start(None, index)
        drawn.append(torch.rand(5))
    assert drawn[0].equal(drawn[2]) and not drawn[0].equal(drawn[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA brings a compiler of its own")
def test_compiling_without_a_compiler_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"expected a C\+\+ compiler"):
        require_compiler()
