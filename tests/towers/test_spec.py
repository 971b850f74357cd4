"""Towers: sizes of the default students, captions without padding, folders."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_distill.students import make_student
from clip_distill.towers.spec import Tower, TowerSpec, count_parameters, load_tower, save_tower
from clip_distill.towers.text import CutTextTransformer

Record = Callable[..., dict[str, Any]]
TINY_TEXT = {"transformer_width": 16, "transformer_layers": 2, "transformer_heads": 2}
TINY_VIT = {"input_resolution": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2}


@pytest.mark.parametrize(("tower", "parameters"), [("image", 26_028_864), ("text", 7_589_504)])
def test_default_students_have_the_documented_size(tower: Tower, parameters: int, make_record: Record) -> None:
    assert count_parameters(make_student(tower, None, make_record(), {})[1]) == parameters


def test_a_caption_cut_to_its_length_has_the_embedding_of_the_padded_one(make_record: Record) -> None:
    torch.manual_seed(0)
    spec, tower = make_student("text", None, make_record(), TINY_TEXT)
    tokens = torch.zeros(3, 77, dtype=torch.long)
    for row, words in enumerate([1, 4, 9]):
        tokens[row, : words + 2] = torch.tensor([49406, *range(300, 300 + words), 49407])
    assert spec.causal
    assert isinstance(tower, CutTextTransformer)
    with torch.no_grad():
        torch.testing.assert_close(tower(tokens[:, :11]), tower(tokens), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tower(tokens[:1, :3]), tower(tokens[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "tokenizer", "causal"),
    [
        ({}, {}, True),
        ({}, {"pad_id": 1}, False),  # a caption's end is the greatest id only where padding is the least
        ({"pool_type": "eos", "eos_id": 2}, {"pad_id": 1}, True),
        ({"pool_type": "last"}, {}, False),
        ({"no_causal_mask": True}, {}, False),
        ({"embed_cls": True}, {}, False),
        ({"hf_model_name": "roberta-base"}, {}, False),
    ],
)
def test_padding_is_cut_only_where_the_embedding_ignores_it(
    cfg: dict[str, Any], tokenizer: dict[str, Any], causal: bool
) -> None:
    assert TowerSpec("text", 8, cfg, tokenizer=tokenizer).causal is causal


@pytest.mark.parametrize(("tower", "options"), [("image", TINY_VIT), ("text", TINY_TEXT)])
def test_a_saved_tower_comes_back_the_same(
    tower: Tower, options: dict[str, Any], make_record: Record, tmp_path: Path
) -> None:
    spec, module = make_student(tower, None, make_record(64), options)
    save_tower(tmp_path / "student", spec, module)
    for folder in (tmp_path, tmp_path / "student"):  # a run's folder, and the student's own
        found, loaded = load_tower(folder)
        assert found == spec
        assert not loaded.training
        assert type(loaded) is type(module)
        state = loaded.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert {path.name for path in (tmp_path / "student").iterdir()} == {"tower.json", "tower.safetensors"}


def test_files_of_a_tower_have_the_mode_of_any_new_file(make_record: Record, tmp_path: Path) -> None:
    save_tower(tmp_path / "student", *make_student("image", None, make_record(64), TINY_VIT))
    (tmp_path / "other").touch()
    expected = stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "student").iterdir()} == {expected}


@pytest.mark.parametrize(("folder", "found"), [("nowhere", "no such folder"), (".", "none of them")])
def test_a_folder_without_a_student_says_what_should_be_there(folder: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"expected a student .*tower.json.*found {found}"):
        load_tower(tmp_path / folder)
