"""A thin token table: the same as the whole one that it stands for, wherever a student goes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

import clip_distill as cd
from clip_distill.exports.vocabulary import expand_vocabulary
from clip_distill.students import make_student
from clip_distill.students.inherit import inherit
from clip_distill.students.layers import drop_words
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec, count_parameters, load_tower, save_tower
from clip_distill.towers.thin import ThinEmbedding, make_whole

TEXTS = ["a dog", "two children play on a beach", "一只猫"]
OPTIONS = {"transformer_width": 16, "transformer_layers": 2, "transformer_heads": 2}


def student(teacher: dict[str, Any], **options: Any) -> tuple[TowerSpec, Any]:
    torch.manual_seed(0)
    spec, module = make_student("text", "transformer", teacher, OPTIONS | options)
    return spec, module.eval()


def tokens_of(spec: TowerSpec) -> torch.Tensor:
    return tokenize(TokenizerSpec(**spec.tokenizer), TEXTS).pad(0, spec.tokenizer["context_length"])


def test_it_takes_the_nearest_table() -> None:
    torch.manual_seed(0)
    thin = ThinEmbedding(50, 3, 8)
    low = torch.randn(50, 3) @ torch.randn(3, 8)
    thin.take(low)
    torch.testing.assert_close(thin.whole(), low)
    tokens = torch.tensor([[4, 49], [0, 4]])
    torch.testing.assert_close(thin(tokens), low[tokens])
    table = torch.randn(50, 8)
    thin.take(table)
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    torch.testing.assert_close(thin.whole(), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(thin.directions.weight.T @ thin.directions.weight, torch.eye(3), atol=1e-5, rtol=0)


def test_a_thin_student_is_smaller_and_comes_back_from_its_files(tiny_teacher: str, tmp_path: Path) -> None:
    teacher = load_teacher(tiny_teacher, "text")[0].teacher
    spec, module = student(teacher, embedding_rank=4)
    plain = student(teacher)[1]
    assert count_parameters(plain) - count_parameters(module) == 49408 * (16 - 4) - 4 * 16
    save_tower(tmp_path, spec, module)
    again, loaded = load_tower(tmp_path)
    assert again == spec
    with torch.no_grad():
        assert torch.equal(loaded(tokens_of(spec)), module(tokens_of(spec)))
        whole = make_whole(copy.deepcopy(module))
        torch.testing.assert_close(whole(tokens_of(spec)), module(tokens_of(spec)))
    with pytest.raises(ValueError, match="embedding_rank from 1 to transformer_width 16, found 17"):
        student(teacher, embedding_rank=17)


def test_first_weights_are_the_teachers_in_so_many_directions(tiny_teacher: str) -> None:
    source, module = load_teacher(tiny_teacher, "text")
    spec, thin = student(source.teacher, embedding_rank=16)
    _, plain = student(source.teacher)
    report = inherit(spec, thin, source, module, "principal")
    inherit(spec, plain, source, module, "principal")
    assert report.endswith("its token table in 16 directions")
    tokens = tokens_of(spec)
    with torch.no_grad():
        torch.testing.assert_close(thin.token_embedding(tokens), plain.token_embedding(tokens), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(thin(tokens), plain(tokens), atol=1e-4, rtol=1e-3)


def test_words_are_dropped_whole(tiny_teacher: str) -> None:
    teacher = load_teacher(tiny_teacher, "text")[0].teacher
    _, module = student(teacher, embedding_rank=4)
    table = module.token_embedding
    before = table(torch.arange(200))
    drop_words(module, 0.5)
    dropped = module.train().token_embedding(torch.arange(200)).detach()
    gone = (dropped == 0).all(1)
    assert 60 < int(gone.sum()) < 140
    torch.testing.assert_close(dropped[~gone], 2 * before[~gone])


def test_open_clip_reads_it_with_one_table(tiny_teacher: str, tmp_path: Path) -> None:
    teacher = load_teacher(tiny_teacher, "text")[0].teacher
    spec, module = student(teacher, embedding_rank=4)
    save_tower(tmp_path / "run/student", spec, module)
    folder = cd.export(text_student=tmp_path / "run", out=tmp_path / "exported")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    assert model.text.token_embedding.weight.shape == (49408, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens_of(spec)), module(tokens_of(spec)), atol=1e-5, rtol=1e-4)
    expanded, _ = expand_vocabulary(spec, module)
    assert "embedding_rank" not in expanded.cfg


def test_its_onnx_file_is_as_thin(tiny_teacher: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    teacher = load_teacher(tiny_teacher, "image")[0].teacher
    spec, module = student(teacher, embedding_rank=4)
    save_tower(tmp_path / "run/student", spec, module)
    cd.export(text_student=tmp_path / "run", out=tmp_path / "onnx", to="onnx")
    size = sum(path.stat().st_size for path in (tmp_path / "onnx").rglob("*text*"))
    assert size < 1.3 * 4 * count_parameters(module), "a whole table would be four times that"
    own = cd.load(text=tmp_path / "run", image=tiny_teacher).encode_text(TEXTS)
    assert abs(own - cd.load(tmp_path / "onnx").encode_text(TEXTS)).max() < 1e-5
