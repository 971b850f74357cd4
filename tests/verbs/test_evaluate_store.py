"""What `evaluate` says of a store that is not as usual: one of several teachers, or made when a photo was broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_distill.cli import main as cli
from clip_distill.evaluation.compare import count_described


def test_parameters_of_several_teachers_are_not_those_of_the_first(make_record: Callable[..., dict[str, Any]]) -> None:
    cfg = {
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"width": 64, "layers": 1, "heads": 1},
        "quick_gelu": False,
    }
    one = make_record() | {"name": "ViT-tiny/made-up", "model_cfg": cfg}
    assert None not in count_described(one).values()
    several = one | {"name": "concat of ViT-tiny/a, ViT-tiny/b", "ensemble": ["ViT-tiny/a", "ViT-tiny/b"]}
    assert count_described(several) == {"image": None, "text": None}


def test_a_photo_that_was_repaired_after_embedding(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    photo = sorted((data / "COCO/val2017").iterdir())[0]
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    store = tmp_path / "store"
    common = ["--data", str(data), "--store", str(store), "--device", "cpu", "--workers", "0"]
    embed = ["embed", *common, "--teacher", tiny_teacher, "--split", "val"]
    cli.main(embed)
    cli.main(["evaluate", *common])
    assert "skipped 1 photos: truncated" in capsys.readouterr().out
    photo.write_bytes(whole)
    with pytest.raises(SystemExit, match="found 1 missing, for instance val2017/.*Run `clip-distill embed`"):
        cli.main(["evaluate", *common])
    cli.main(embed)
    cli.main(["evaluate", *common])
    assert "8 photos, 24 captions" in capsys.readouterr().out


def test_a_folder_for_the_numbers_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a JSON file, such as .*result.json, found the folder"):
        cli.main(["evaluate", "--data", ".", "--store", ".", "--out", str(tmp_path)])
