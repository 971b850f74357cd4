"""A student as a sequence of layers: what is frozen keeps its numbers, what is recomputed gives the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip_distill.students import make_student
from clip_distill.students.layers import drop_words, freeze, layer_of, recompute, rest, statistics_kept
from clip_distill.towers.spec import Tower

Case = tuple[Tower, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "vit": ("image", "vit", {"input_resolution": 32, "patch_size": 16, "width": 32, "layers": 3, "heads": 2}),
    "timm": ("image", "timm", {"model": "test_efficientnet", "input_resolution": 32}),
    "timm_vit": ("image", "timm", {"model": "test_vit", "input_resolution": 160}),
    "timm_cut": ("image", "timm_cut", {"model": "tf_efficientnet_lite0", "depths": [1, 2, 1], "input_resolution": 64}),
    "timm_cut_resnet": ("image", "timm_cut", {"model": "test_resnet", "input_resolution": 32}),
    "timm_cut_regnet": ("image", "timm_cut", {"model": "regnety_002", "depths": [1, 1], "input_resolution": 32}),
    "timm_cut_convnext": ("image", "timm_cut", {"model": "test_convnext", "input_resolution": 64}),
    "text": ("text", "transformer", {"transformer_width": 16, "transformer_layers": 3, "transformer_heads": 2}),
}
HAVE_BATCH_NORMS = {"timm", "timm_cut", "timm_cut_resnet"}


def build(case: str, make_record: Callable[..., dict[str, Any]]) -> tuple[nn.Module, Tensor]:
    """A student and a batch for it."""
    tower, name, options = CASES[case]
    torch.manual_seed(0)
    spec, student = make_student(tower, name, make_record(32), options)
    if tower == "text":
        tokens = torch.randint(1, 400, (4, 9))
        tokens[:, -1] = 49407
        return student.train(), tokens
    side = spec.preprocess["size"][0]
    return student.train(), torch.rand(4, 3, side, side)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("coarse", [False, True])
def test_every_parameter_has_a_layer_and_layers_follow_the_forward_pass(
    case: str, coarse: bool, make_record: Callable[..., dict[str, Any]]
) -> None:
    student, inputs = build(case, make_record)
    layers = layer_of(student, coarse)
    assert layers.keys() == dict(student.named_parameters()).keys()
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    order: list[str] = []
    for name, module in student.named_modules():
        if any(True for _ in module.parameters(recurse=False)) and "." in name:
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    student(inputs)
    ran = [
        min(layers[f"{name}.{part}"] for part, _ in student.get_submodule(name).named_parameters()) for name in order
    ]
    assert ran == sorted(ran)


@pytest.mark.parametrize("case", CASES)
def test_what_is_frozen_gets_no_gradients_and_keeps_its_statistics(
    case: str, make_record: Callable[..., dict[str, Any]]
) -> None:
    student, inputs = build(case, make_record)
    before = copy.deepcopy(student.state_dict())
    freeze(student, 1)
    student(inputs).square().sum().backward()
    layers = layer_of(student, coarse=True)
    assert {layers[name] for name, p in student.named_parameters() if p.grad is None} == {0, 1}
    assert {layers[name] for name, p in student.named_parameters() if p.grad is not None} == set(layers.values()) - {
        0,
        1,
    }
    frozen = {name.rpartition(".")[0] for name in layers if layers[name] <= 1}
    moved = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    assert not [name for name in moved if name.rpartition(".")[0] in frozen]
    assert bool(moved) == (case in HAVE_BATCH_NORMS or case == "timm_cut_regnet")  # the others' statistics
    student.train()
    rest(student)
    assert not any(student.get_submodule(name).training for name in frozen if name not in ("", "trunk"))


def test_a_frozen_beginning_keeps_nothing_for_the_backward_pass(make_record: Callable[..., dict[str, Any]]) -> None:
    def kept(what: int) -> int:
        student, inputs = build("timm_cut", make_record)
        freeze(student, what)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            student(inputs)
        return sum(sizes)

    assert kept(0) > kept(1) > 2 * kept(2)
    student, inputs = build("timm_cut", make_record)
    freeze(student, 2)
    trunk = student.get_submodule("trunk")
    beginning = nn.Sequential(trunk.conv_stem, trunk.bn1, trunk.blocks[:2])
    assert not beginning(inputs).requires_grad  # autograd has recorded nothing


def test_modules_are_frozen_by_name(make_record: Callable[..., dict[str, Any]]) -> None:
    student, _ = build("text", make_record)
    freeze(student, ["token_embedding", "transformer.resblocks.1"])
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert {name.split(".mlp")[0].split(".ln")[0].split(".attn")[0] for name in frozen} == {
        "token_embedding.weight",
        "transformer.resblocks.1",
    }


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (9, "up to 3 blocks or stages, found 9"),
        (-1, "up to 3 blocks or stages, found -1"),
        (["nonsense"], r"token_embedding.*, found 'nonsense'"),
        (["transformer.resblocks.1", "transformer.resblock"], "found 'transformer.resblock'"),
        (
            ["token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"],
            "something left to train",
        ),
    ],
)
def test_mistakes_are_told(what: Any, message: str, make_record: Callable[..., dict[str, Any]]) -> None:
    student, _ = build("text", make_record)
    with pytest.raises(ValueError, match=message):
        freeze(student, what)


@pytest.mark.parametrize("case", CASES)
def test_recomputing_changes_neither_output_nor_gradients_nor_statistics_nor_names(
    case: str, make_record: Callable[..., dict[str, Any]]
) -> None:
    student, inputs = build(case, make_record)
    again = copy.deepcopy(student)
    recompute(again)
    sizes: dict[bool, int] = {}
    for each in (student, again):
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, seen=seen: seen.append(x.numel()) or x, lambda x: x):
            output = each(inputs)
        sizes[each is again] = sum(seen)
        with statistics_kept(each):
            output.square().sum().backward()
    assert sizes[True] < 0.7 * sizes[False]
    assert student.state_dict().keys() == again.state_dict().keys()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(again.get_parameter(name).grad, parameter.grad)
    torch.testing.assert_close(again.eval()(inputs), student.eval()(inputs))


def test_words_are_dropped_whole_in_training_alone(make_record: Callable[..., dict[str, Any]]) -> None:
    student, tokens = build("text", make_record)
    names, rows, whole = student.state_dict().keys(), student.token_embedding(tokens), student.eval()(tokens)
    drop_words(student, 0.25)
    assert student.state_dict().keys() == names
    torch.testing.assert_close(student(tokens), whole)
    torch.manual_seed(0)
    seen = student.train().token_embedding(tokens.repeat(200, 1)).unflatten(0, (200, 4))
    kept = seen.any(-1)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.02)
    assert kept.float().mean(0).min() > 0.5 and kept.float().mean(0).max() < 0.95  # at every place
    expected = rows.expand_as(seen)[kept] / 0.75
    torch.testing.assert_close(seen[kept], expected)
    assert not torch.allclose(student(tokens), whole, atol=1e-3)


def test_a_tower_without_a_table_of_words_is_told() -> None:
    with pytest.raises(ValueError, match="student.word_dropout: expected a student with a `token_embedding`"):
        drop_words(nn.Linear(2, 2), 0.1)


def test_a_tower_that_cannot_recompute_is_told() -> None:
    with pytest.raises(ValueError, match="--checkpointing: expected a student with blocks"):
        recompute(nn.Linear(2, 2))
