"""`clip-distill embed` on its command line: what it refuses before the teacher runs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from clip_distill.cli import main as cli


def embed(data: Path, teacher: str, store: Path, *options: str) -> None:
    cli.main(["embed", "--data", str(data), "--teacher", teacher, "--store", str(store), "--workers", "0", *options])


def test_a_missing_annotation_file_is_said_and_the_rest_embedded(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "COCO/annotations/captions_val2017.json").unlink()
    asked = ["--tower", "text", "--split", "val"]
    with pytest.raises(SystemExit, match="captions_val2017.json; if they lie elsewhere, pass --sources.val_captions"):
        embed(data, tiny_teacher, tmp_path / "store", *asked)
    assert not (tmp_path / "store").exists()
    embed(data, tiny_teacher, tmp_path / "store")
    told = capsys.readouterr().out
    assert f"missing: {data}/COCO/annotations/captions_val2017.json" in told
    assert "no captions to validate on: not embedded" in told
    assert sorted(table.name for table in (tmp_path / "store").iterdir()) == ["image-train", "image-val", "text-train"]


def test_a_teacher_that_lies_elsewhere_now(
    tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path
) -> None:
    folder = Path(tiny_teacher.removeprefix("local-dir:"))
    monkeypatch.chdir(tmp_path)
    relative = f"local-dir:{os.path.relpath(folder.parent)}/gone"
    expected = (
        f"found none in {folder.parent.resolve()}/gone. If it lies elsewhere now, name it with --teacher local-dir"
    )
    with pytest.raises(SystemExit, match=re.escape(expected)):
        embed(tiny_data, relative, tmp_path / "store")
