"""Packed features stand for photos and the student's frozen stages: the same training, and the whole student saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_distill.batches.features import Front
from clip_distill.cli import main as cli
from clip_distill.pixels.views import normalise
from clip_distill.students import make_student
from clip_distill.students.cut import CutBackbone
from clip_distill.students.layers import freeze, skip_frozen
from clip_distill.towers.spec import load_tower

SIZES = "{model: test_efficientnet, input_resolution: 32, hidden: 16}"


def cut(make_record: Any, model: str) -> tuple[dict[str, Any], CutBackbone]:
    torch.manual_seed(0)
    spec, student = make_student("image", "timm_cut", make_record(32), {"model": model, "input_resolution": 64})
    assert isinstance(student, CutBackbone)
    return spec.preprocess, student.eval()


@pytest.mark.parametrize(
    ("model", "stages", "parts"), [("test_efficientnet", 2, 4), ("test_resnet", 1, 5), ("test_convnext", 1, 2)]
)
def test_features_and_the_rest_give_what_the_whole_student_gives(
    model: str, stages: int, parts: int, make_record: Any
) -> None:
    preprocess, student = cut(make_record, model)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        whole = student(normalise(pixels, preprocess))
        torch.testing.assert_close(whole, student.head(student.trunk(normalise(pixels, preprocess))))
        freeze(student, stages)
        skip_frozen(student)
        assert student.done == parts
        features = Front(student, preprocess)(pixels)
        assert features.dtype == torch.float16
        rest = student(features.float())
    assert F.cosine_similarity(whole, rest).min() > 0.9999
    assert features[0].numel() < pixels[0].numel() * 4


def test_the_digest_tells_weights_and_stages(make_record: Any) -> None:
    def digest(stages: int, change: float = 0) -> str:
        preprocess, student = cut(make_record, "test_efficientnet")
        with torch.no_grad():
            student.trunk.get_parameter("conv_stem.weight")[0, 0, 0, 0] += change
        freeze(student, stages)
        skip_frozen(student)
        return Front(student, preprocess).digest

    assert digest(2) == digest(2)
    assert len({digest(2), digest(1), digest(2, 0.1)}) == 3


def test_a_student_that_trains_from_the_first_is_refused(make_record: Any) -> None:
    _, student = cut(make_record, "test_efficientnet")
    with pytest.raises(ValueError, match="first stages are frozen, found one that trains from the first"):
        skip_frozen(student)
    _, other = make_student("image", "timm", make_record(32), {"model": "test_efficientnet", "input_resolution": 32})
    with pytest.raises(ValueError, match="expected a timm_cut student, found TimmModel"):
        skip_frozen(other)


def fit(data: Path, store: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    arguments = ["--tower", "image", "--data", str(data), "--store", str(store), "--out", str(out), "--seed", "4"]
    arguments += ["--student.name", "timm_cut", "--student.options", SIZES, "--student.freeze", "2"]
    arguments += ["--loader.workers", "0", "--loader.batch_size", "8", "--trainer.max_epochs", "2"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    cli.main(["fit", "--preset", "none", *arguments, *options])
    return load_file(out / "student/tower.safetensors")


def test_fit_trains_from_features_to_nearly_the_same_weights(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    features = ["--loader.features", str(tmp_path / "features")]
    plain = fit(data, tiny_views_store, tmp_path / "plain")
    packed = fit(data, tiny_views_store, tmp_path / "packed", *features)
    assert plain.keys() == packed.keys()
    frozen = [name for name in plain if name.startswith(("trunk.conv_stem", "trunk.bn1", "trunk.blocks.0"))]
    assert frozen
    assert all(torch.equal(plain[name], packed[name]) for name in frozen)
    _, one = load_tower(tmp_path / "plain/student")
    _, other = load_tower(tmp_path / "packed/student")
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert F.cosine_similarity(one.eval()(pixels), other.eval()(pixels)).min() > 0.99
    for photo in (*(data / "image").iterdir(), *(data / "COCO/val2017").iterdir()):
        photo.write_bytes(b"no photo any more")
    again = fit(data, tiny_views_store, tmp_path / "again", *features)
    assert all(torch.equal(again[name], packed[name]) for name in packed)
    with pytest.raises(SystemExit, match=r"weights: expected(.|\n)*Name another folder"):
        fit(data, tiny_views_store, tmp_path / "seed", *features, "--seed", "5")


def test_ema_mixup_and_resume_go_with_features(tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    options = ["--loader.features", str(tmp_path / "features"), "--ema", "0.9", "--mixup", "0.2"]
    whole = fit(tiny_data, tiny_views_store, tmp_path / "whole", *options)
    fit(tiny_data, tiny_views_store, tmp_path / "halves", *options, "--trainer.max_steps", "3")
    resumed = fit(tiny_data, tiny_views_store, tmp_path / "halves", *options, "--resume", "true")
    assert whole.keys() == resumed.keys()


def test_fresh_views_have_no_features(tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    options = ["--loader.features", str(tmp_path / "features"), "--target", "online"]
    with pytest.raises(SystemExit, match="loader.features: expected stored targets, found --target online"):
        fit(tiny_data, tiny_views_store, tmp_path / "out", *options)
