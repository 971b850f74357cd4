"""Small files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_distill.system.files import read_json, sha256, write_json


def test_json_comes_back_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    value = {"名": ["狗", 1, None, 0.5], "nested": {"é": True}}
    write_json(tmp_path / "new" / "a.json", value)
    assert read_json(tmp_path / "new" / "a.json") == value
    assert "狗" in (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_the_old_file_stays_when_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
