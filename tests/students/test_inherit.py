"""Weights from the teacher: what is cut where, and that a student which could hold all of the teacher does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip_distill.students import make_student
from clip_distill.students.inherit import Select, inherit
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.pruned import kept_ids, prune
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec

Record = Callable[..., dict[str, Any]]
SELECT: list[Select] = ["leading", "important", "principal"]
VIT = {"input_resolution": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2}
TEXT = {"transformer_width": 16, "transformer_layers": 2, "transformer_heads": 2, "context_length": 12}
TEXTS = ["a dog runs", "two cats on a red sofa", "blue"]


def tower(kind: str, record: dict[str, Any], seed: int = 0, **options: Any) -> tuple[TowerSpec, nn.Module]:
    """A small tower whose weights all differ from zero and one, as trained ones do."""
    image = kind in ("vit", "timm", "timm_cut")
    torch.manual_seed(seed)
    base = VIT if kind == "vit" else TEXT if kind == "transformer" else {"input_resolution": 64}
    which: Tower = "image" if image else "text"
    spec, module = make_student(which, kind, record, base | options)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor += 0.2 * torch.randn_like(tensor)
    return spec, module.eval()


def inputs(spec: TowerSpec) -> Tensor:
    if spec.tower == "text":
        return tokenize(TokenizerSpec(**spec.tokenizer), TEXTS).pad(0)
    return torch.randn(3, 3, *spec.preprocess["size"], generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(spec: TowerSpec, module: nn.Module) -> Tensor:
    return module.eval()(inputs(spec))


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("kind", ["vit", "transformer"])
def test_a_student_of_the_teachers_size_is_the_teacher(kind: str, select: Select, make_record: Record) -> None:
    source, teacher = tower(kind, make_record(8))
    spec, student = tower(kind, make_record(8), seed=1)
    report = inherit(spec, student, source, teacher, select)
    count = len(student.state_dict())
    assert f"inherited {count} of {count} tensors" in report and report.endswith("from made-up")
    torch.testing.assert_close(outputs(spec, student), outputs(source, teacher), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize(("kind", "option"), [("vit", "layers"), ("transformer", "transformer_layers")])
def test_a_deeper_students_other_layers_add_nothing(
    kind: str, option: str, select: Select, make_record: Record
) -> None:
    source, teacher = tower(kind, make_record(8))
    spec, student = tower(kind, make_record(8), seed=1, **{option: 5})
    assert "the others, in transformer, start anew" in inherit(spec, student, source, teacher, select)
    torch.testing.assert_close(outputs(spec, student), outputs(source, teacher), atol=1e-4, rtol=1e-3)


def test_layers_are_evenly_spaced_and_channels_lead(make_record: Record) -> None:
    source, teacher = tower("transformer", make_record(8), transformer_layers=5)
    spec, student = tower("transformer", make_record(8), 1, transformer_layers=3, transformer_width=8)
    inherit(spec, student, source, teacher)
    own, theirs = student.state_dict(), teacher.state_dict()
    for mine, other in ((0, 0), (1, 2), (2, 4)):
        a, b = f"transformer.resblocks.{mine}.", f"transformer.resblocks.{other}."
        torch.testing.assert_close(own[a + "mlp.c_fc.weight"], theirs[b + "mlp.c_fc.weight"][:32, :8])
        torch.testing.assert_close(own[a + "ln_2.bias"], theirs[b + "ln_2.bias"][:8])
        # two heads of 4 from two heads of 8, for queries, keys and values
        rows = torch.tensor([part * 16 + head * 8 + i for part in range(3) for head in range(2) for i in range(4)])
        torch.testing.assert_close(own[a + "attn.in_proj_weight"], theirs[b + "attn.in_proj_weight"][rows, :8])
        torch.testing.assert_close(own[a + "attn.out_proj.weight"], theirs[b + "attn.out_proj.weight"][:8, rows[:8]])
    assert torch.equal(own["token_embedding.weight"], theirs["token_embedding.weight"][:, :8])
    assert torch.equal(own["positional_embedding"], theirs["positional_embedding"][:, :8])
    assert torch.equal(own["text_projection"], theirs["text_projection"][:8])


def test_important_channels_and_heads_are_found(make_record: Record) -> None:
    source, teacher = tower("transformer", make_record(8), transformer_layers=1, transformer_heads=4)
    strong, head, hidden = (
        torch.tensor([1, 4, 6, 7, 10, 11, 14, 15]),
        torch.tensor([8, 9, 10, 11]),
        torch.arange(20, 36),
    )
    layer = teacher.transformer.resblocks[0]
    with torch.no_grad():
        for weight in (layer.attn.out_proj.weight, layer.mlp.c_proj.weight):
            weight[strong] *= 10
        layer.attn.out_proj.weight[:, head] *= 10
        layer.mlp.c_fc.weight[hidden] *= 10
    options = {"transformer_layers": 1, "transformer_width": 8, "transformer_heads": 1, "mlp_ratio": 2}
    spec, student = tower("transformer", make_record(8), 1, **options)
    inherit(spec, student, source, teacher, "important")
    own = student.transformer.resblocks[0]
    assert torch.equal(student.text_projection, teacher.text_projection[strong])
    assert torch.equal(own.mlp.c_fc.weight, layer.mlp.c_fc.weight[hidden][:, strong])
    values = own.attn.in_proj_weight[16:20]  # the head is as wide as two of the teacher's, so half of it is filled
    theirs = layer.attn.in_proj_weight[32 + head][:, strong]
    assert {tuple(row) for row in values.tolist()} == {tuple(row) for row in theirs.tolist()}


@pytest.mark.parametrize(("kind", "width"), [("vit", "width"), ("transformer", "transformer_width")])
def test_principal_directions_keep_all_of_a_stream_that_uses_few(kind: str, width: str, make_record: Record) -> None:
    """A teacher of width 16 whose stream stays in 7 directions fits a student of width 8, whatever the directions."""
    source, teacher = tower(kind, make_record(4), mlp_ratio=2.0)
    zero_sum = torch.linalg.qr(torch.cat([torch.ones(16, 1), torch.randn(16, 7)], 1))[0][:, 1:]
    project = zero_sum @ zero_sum.T
    norms = re.compile(r"ln_(1|2|pre)\.weight|ln_pre\.bias")
    with torch.no_grad():
        for name, tensor in teacher.state_dict().items():
            if norms.search(name):
                tensor.fill_(float(name.endswith("weight")))
            elif re.search(r"(out_proj|c_proj)\.weight$", name):
                tensor.copy_(project @ tensor)
            elif re.search(r"(in_proj_weight|c_fc\.weight)$", name):
                tensor.copy_(tensor @ project)
            elif re.search(r"embedding(\.weight)?$|(out_proj|c_proj)\.bias$", name):
                tensor.copy_(10 * tensor @ project)  # large, so that the norms' epsilon does not count
            elif name == "conv1.weight":
                tensor.copy_(10 * torch.einsum("vw,wcij->vcij", project, tensor))
            if "in_proj" in name:  # 4 of each head's 8 channels
                tensor.view(3, 2, 8, *tensor.shape[1:])[:, :, 4:] = 0
    spec, student = tower(kind, make_record(4), 1, **{width: 8, "mlp_ratio": 4.0})
    inherit(spec, student, source, teacher, "principal")
    torch.testing.assert_close(outputs(spec, student), outputs(source, teacher), atol=2e-3, rtol=1e-2)
    inherit(spec, student, source, teacher, "leading")
    assert (outputs(spec, student) - outputs(source, teacher)).abs().max() > 0.1


def test_positions_and_patches_are_resampled(make_record: Record) -> None:
    source, teacher = tower("vit", make_record(8))
    with torch.no_grad():
        teacher.positional_embedding[1:] = 3.0
        teacher.positional_embedding[0] = 5.0
    spec, student = tower("vit", make_record(8), 1, patch_size=16, input_resolution=48)
    inherit(spec, student, source, teacher)
    assert student.positional_embedding.shape == (1 + 3 * 3, 16)
    torch.testing.assert_close(student.positional_embedding[1:], torch.full((9, 16), 3.0))
    torch.testing.assert_close(student.positional_embedding[0], torch.full((16,), 5.0))
    # of a patch of one colour, filters of either size see the same
    sums = [each.conv1.weight.sum((2, 3)) for each in (student, teacher)]
    torch.testing.assert_close(*sums, atol=1e-3, rtol=1e-3)


def test_a_pruned_table_takes_the_rows_of_its_tokens(make_record: Record) -> None:
    source, teacher = tower("transformer", make_record(8))
    whole = TokenizerSpec(**source.tokenizer)
    pruned = prune(whole, tokenize(whole, TEXTS))
    spec, student = tower("transformer", make_record(8), 1, tokenizer=pruned.as_dict())
    inherit(spec, student, source, teacher)
    kept = kept_ids(pruned.as_dict())
    assert len(student.token_embedding.weight) == len(kept) < 600
    assert torch.equal(student.token_embedding.weight, teacher.token_embedding.weight[torch.from_numpy(kept)])
    assert torch.equal(outputs(spec, student), outputs(source, teacher))


def test_a_student_with_another_tokenizer_keeps_its_own_table(make_record: Record) -> None:
    source, teacher = tower("transformer", make_record(8))
    spec, student = tower("transformer", make_record(8), 1)
    spec.tokenizer["source"] = "another"
    before = student.token_embedding.weight.clone()
    assert "in token_embedding, start anew" in inherit(spec, student, source, teacher)
    assert torch.equal(student.token_embedding.weight, before)
    assert torch.equal(student.text_projection, teacher.text_projection)


def test_timm_tensors_of_one_name_give_their_leading_channels_and_statistics(make_record: Record) -> None:
    source, teacher = tower("timm", make_record(8), model="mobilenetv3_small_075")
    spec, student = tower("timm", make_record(8), 1, model="mobilenetv3_small_050")
    with torch.no_grad():
        for name, tensor in teacher.state_dict().items():
            if "running" in name:
                tensor.uniform_(0.5, 2)
    report = inherit(spec, student, source, teacher)
    own, theirs = student.state_dict(), teacher.state_dict()
    assert re.match(r"inherited \d+ of \d+ tensors, \d\.\d\dM of 0.58M numbers, from made-up", report)
    for name in ("trunk.blocks.2.0.conv_pw.weight", "trunk.blocks.2.0.bn2.running_var", "trunk.conv_stem.weight"):
        slices = tuple(slice(size) for size in own[name].shape)
        assert torch.equal(own[name], theirs[name][slices])


@pytest.mark.parametrize(
    ("student", "select", "message"),
    [
        ("vit", "leading", "nothing of the teacher's TimmModel .made-up. fits the student's VisionTransformer"),
        ("vit", "principal", "student.select principal: expected a student and a teacher of open_clip's own"),
    ],
)
def test_what_does_not_fit_is_told(student: str, select: Select, message: str, make_record: Record) -> None:
    source, teacher = tower("timm", make_record(8), model="test_efficientnet")
    spec, module = tower(student, make_record(8), 1)
    with pytest.raises(ValueError, match=message):
        inherit(spec, module, source, teacher, select)
