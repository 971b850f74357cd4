"""Students: their options, what they take over from the teacher, and that their spec builds them again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from clip_distill.students import make_student
from clip_distill.towers.spec import Tower, TowerSpec

Record = Callable[..., dict[str, Any]]
SMALL: dict[str, tuple[Tower, dict[str, Any]]] = {
    "vit": ("image", {"input_resolution": 48, "patch_size": 16, "width": 24, "layers": 2, "heads": 3}),
    "timm": ("image", {"model": "test_efficientnet", "input_resolution": 64}),
    "transformer": ("text", {"transformer_width": 24, "transformer_layers": 2, "transformer_heads": 3}),
}

HIDDEN = {"model": "mobilenetv3_small_050", "proj": "mlp"}
TOO_SMALL = {"model": "vit_tiny_patch16_224", "input_resolution": 64}


def inputs(spec: TowerSpec) -> Tensor:
    if spec.tower == "image":
        return torch.randn(2, 3, *spec.preprocess["size"], generator=torch.Generator().manual_seed(0))
    return torch.tensor([[49406, 320, 49407, 0], [49406, 320, 1929, 49407]])


def modules_of(kind: type[nn.Module], tower: nn.Module) -> int:
    return sum(isinstance(part, kind) for part in tower.modules())


@pytest.mark.parametrize("embed_dim", [256, 512, 768])
@pytest.mark.parametrize("name", SMALL)
def test_the_width_is_the_teachers(name: str, embed_dim: int, make_record: Record) -> None:
    tower, options = SMALL[name]
    record = make_record(embed_dim)
    spec, module = make_student(tower, name, record, options)
    assert module(inputs(spec)).shape == (2, embed_dim)
    assert (spec.tower, spec.embed_dim, spec.teacher) == (tower, embed_dim, record)


@pytest.mark.parametrize("name", SMALL)
def test_a_spec_that_went_through_json_builds_the_same_tower(name: str, make_record: Record) -> None:
    tower, options = SMALL[name]
    spec, module = make_student(tower, name, make_record(32), options)
    again = TowerSpec(**json.loads(json.dumps(dataclasses.asdict(spec))))
    assert again == spec
    copy = again.build()
    copy.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(copy.eval()(inputs(spec)), module.eval()(inputs(spec)))


@pytest.mark.parametrize("name", ["vit", "transformer"])
def test_the_activation_is_the_teachers(name: str, make_record: Record) -> None:
    tower, options = SMALL[name]
    for quick in (False, True):
        spec, module = make_student(tower, name, make_record(32, quick_gelu=quick), options)
        assert spec.quick_gelu is quick
        assert (modules_of(QuickGELU, module), modules_of(nn.GELU, module)) == ((2, 0) if quick else (0, 2))


def test_options_of_the_vit(make_record: Record) -> None:
    _, module = make_student("image", "vit", make_record(32), SMALL["vit"][1] | {"mlp_ratio": 2.0})
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["conv1.weight"] == (24, 3, 16, 16)
    assert shapes["positional_embedding"] == (1 + 3 * 3, 24)
    assert shapes["transformer.resblocks.1.mlp.c_fc.weight"] == (48, 24)
    assert module.transformer.resblocks[0].attn.num_heads == 3
    assert len(module.transformer.resblocks) == 2


def test_patches_are_left_out_in_training_alone(make_record: Record) -> None:
    _, options = SMALL["vit"]
    spec, whole = make_student("image", "vit", make_record(32), options)
    assert "patch_dropout" not in spec.cfg
    spec, module = make_student("image", "vit", make_record(32), options | {"patch_dropout": 0.5})
    module.load_state_dict(whole.state_dict())
    images, seen = inputs(spec), list[int]()
    module.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    with torch.no_grad():
        assert not torch.equal(module.train()(images), module(images))
        torch.testing.assert_close(module.eval()(images), whole.eval()(images))
    assert seen == [1 + 4, 1 + 4, 1 + 9]  # of 3 × 3 patches, and the class token


def test_options_of_the_transformer(make_record: Record) -> None:
    options = SMALL["transformer"][1] | {"context_length": 16, "vocab_size": 50000, "mlp_ratio": 3.0}
    spec, module = make_student("text", None, make_record(32), options)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["token_embedding.weight"] == (50000, 24)
    assert shapes["positional_embedding"] == (16, 24)
    assert shapes["transformer.resblocks.1.mlp.c_fc.weight"] == (72, 24)
    assert spec.tokenizer["context_length"] == 16


def test_options_of_timm(make_record: Record) -> None:
    options = {"model": "test_resnet", "input_resolution": 96, "proj": "mlp", "pool": "avg"}
    spec, module = make_student("image", "timm", make_record(32), options)
    assert spec.preprocess["size"] == [96, 96]
    assert module.head.mlp.fc2.out_features == 32
    assert module.training
    default, _ = make_student("image", "timm", make_record(32), {"model": "test_resnet"})
    assert default.preprocess["size"] == [224, 224]  # the teacher's


def test_a_timm_model_with_a_hidden_layer_before_its_classifier(make_record: Record) -> None:
    spec, module = make_student("image", "timm", make_record(32), {"model": "mobilenetv3_small_050"})
    assert module.trunk.classifier.out_features == 32
    assert module.eval()(inputs(spec)).shape == (2, 32)
    module.train()(inputs(spec)).sum().backward()
    assert module.trunk.classifier.weight.grad is not None


def test_pixels_are_normalised_as_the_teachers_are(make_record: Record) -> None:
    record = make_record(32)
    spec, _ = make_student("image", "vit", record, SMALL["vit"][1])
    assert spec.preprocess == record["preprocess"] | {"size": [48, 48]}


@pytest.mark.parametrize(
    ("tower", "name", "options", "message"),
    [
        (
            "image",
            "vit",
            {"widht": 3, "depth": 1},
            "has no option depth, widht; its options are input_resolution,",
        ),
        ("image", "vit", {"width": 50, "heads": 3}, "width a multiple of heads, found .* 50 and 3"),
        ("image", "vit", {"patch_dropout": 1}, "patch_dropout 0, or a share below 1, found 1"),
        ("image", "vit", {"input_resolution": 100}, "input_resolution a multiple of patch_size .* 100 and 32"),
        ("image", "timm", {}, "needs the options model"),
        ("image", "timm", {"model": "resnet_18"}, "no model 'resnet_18'; similar: .*resnet"),
        ("image", "timm", {"model": "test_resnet", "proj": "none"}, "expected proj linear or mlp, found 'none'"),
        ("image", "timm", HIDDEN, "has a hidden layer before its classifier; leave proj mlp out"),
        ("image", "timm", TOO_SMALL, "'vit_tiny_patch16_224' does not take images of 64×64: .* own size is 224"),
        ("image", "transformer", {}, "expected a student for the image tower, found 'transformer'"),
        ("text", "vit", {}, "expected a student for the text tower, found 'vit'"),
        (
            "text",
            None,
            {"vocab_size": 1000},
            "found 1000. Use --student.options.vocab_size 49408",
        ),
        ("text", None, {"transformer_width": 50}, "multiple of transformer_heads, found 50 and 8"),
        ("text", "rnn", {}, "unknown student 'rnn': expected one of timm, timm_cut, transformer, vit"),
    ],
)
def test_wrong_options_are_told(
    tower: Tower, name: str | None, options: dict[str, Any], message: str, make_record: Record
) -> None:
    with pytest.raises(ValueError, match=message):
        make_student(tower, name, make_record(32), options)
