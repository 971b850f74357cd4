"""Cut backbones: that they are timm's own up to the cut, their size, and how they are saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from clip_distill.exports.open_clip import describe
from clip_distill.students import make_student
from clip_distill.students.cut import build, cut, stage_depths
from clip_distill.students.inherit import inherit
from clip_distill.towers.spec import TowerSpec, count_parameters, load_tower, save_tower

Record = Callable[..., dict[str, Any]]
SMALL = {"model": "test_efficientnet", "hidden": 16, "input_resolution": 64}


@pytest.mark.parametrize(
    ("model", "depths", "tap"),
    [
        ("test_efficientnet", [1, 1, 1], 2),
        ("test_resnet", [1, 1], 2),
        ("test_convnext", [1, 2, 4], 2),
        ("regnetx_002", [1, 1, 4], 3),
    ],
)
def test_features_are_timms_own_up_to_the_cut(model: str, depths: list[int], tap: int) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(model).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, intermediates_only=True)[tap]
        torch.testing.assert_close(cut(whole, depths)(images), expected, atol=1e-5, rtol=1e-4)


def test_a_stage_may_be_kept_in_part() -> None:
    assert stage_depths("test_convnext") == [1, 2, 4, 2]
    trunk = cut(timm.create_model("test_convnext"), [1, 1, 3])
    assert [len(stage.blocks) for stage in trunk.stages] == [1, 1, 3]


@pytest.mark.parametrize(
    ("depths", "hidden", "share"), [([1, 2, 2, 3, 3, 2], 768, 1 / 2), ([1, 2, 2, 3, 3], 512, 1 / 4)]
)
@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_an_efficientnet_lite0_shrinks_to_a_half_and_a_quarter(
    depths: list[int], hidden: int, share: float, head: Any
) -> None:
    teacher = 3_698_944  # tf_efficientnet_lite0 with a linear projection to 256
    assert 0.9 * share < count_parameters(build(256, "tf_efficientnet_lite0", depths, hidden, head)) / teacher <= share


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_it_is_saved_and_loaded_like_any_tower(head: str, make_record: Record, tmp_path: Path) -> None:
    spec, student = make_student("image", "timm_cut", make_record(32), SMALL | {"depths": [1, 1, 1], "head": head})
    assert student.training
    assert spec == TowerSpec(**json.loads(json.dumps(dataclasses.asdict(spec))))
    save_tower(tmp_path, spec, student)
    again, loaded = load_tower(tmp_path)
    images = torch.randn(2, 3, *again.preprocess["size"])
    with torch.no_grad():
        embeddings = loaded(images)
        assert embeddings.shape == (2, 32)
        assert torch.equal(embeddings, student.eval()(images))


def test_its_trunk_starts_as_the_teachers(make_record: Record) -> None:
    record = make_record(32)
    source, teacher = make_student("image", "timm", record, {"model": "test_efficientnet", "input_resolution": 64})
    teacher.train()(torch.randn(8, 3, 64, 64))  # moves the batch norms' statistics
    record["model_cfg"]["vision_cfg"] = source.cfg
    spec, student = make_student("image", "timm_cut", record, {"depths": [1, 1, 1], "input_resolution": 64})
    assert spec.cfg["model"] == "test_efficientnet"  # the teacher's
    report = inherit(spec, student, source, teacher)
    assert "; the others, in head, start anew" in report
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = teacher.eval().trunk.forward_intermediates(images, intermediates_only=True)[2]
        torch.testing.assert_close(student.eval().trunk(images), expected)


def test_open_clip_knows_it_by_a_name_of_timms(make_record: Record) -> None:
    spec, _ = make_student("image", "timm_cut", make_record(32), SMALL | {"depths": [1, 1], "head": "conv"})
    text, _ = make_student("text", None, make_record(32), {"transformer_width": 8, "transformer_layers": 1})
    vision = describe(spec, text, spec.teacher)["vision_cfg"]
    assert vision["timm_model_name"] == f"clip_distill_cut.{spec.cfg['model']}-1_1-{spec.cfg['hidden']}-conv"
    assert timm.is_model(vision["timm_model_name"].partition(".")[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found None; the teacher has none of its own"),
        ({"model": "resnet_18"}, "expected a timm model .*, found 'resnet_18'"),
        ({"model": "test_vit"}, "a plain stack of stages .*, found 'test_vit'"),
        (SMALL | {"depths": [1, 2]}, "5 stages, each from 1 to .1, 1, 1, 1, 1. blocks; found .1, 2."),
        (SMALL | {"depths": [1] * 6}, "up to 5 stages"),
        (SMALL | {"head": "linear"}, "expected head mlp or conv, found 'linear'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str, make_record: Record) -> None:
    with pytest.raises(ValueError, match=message):
        make_student("image", "timm_cut", make_record(32), options)
