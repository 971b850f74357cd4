"""Extending a finished table, interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clip_distill.store.table import StoreError

Start = Callable[..., Any]  # of conftest.Child
WaitFor = Callable[[Callable[[], object]], None]


def test_an_interrupted_extension_says_how_to_keep_what_is_finished(
    synthetic: SimpleNamespace, tmp_path: Path, start: Start, wait_for: WaitFor
) -> None:
    synthetic.build(tmp_path, 4, 4)
    child = start(tmp_path, 40, 4, pause=0.05)
    wait_for(lambda: (tmp_path / "shard-00002").exists())
    child.kill()
    with pytest.raises(StoreError, match="delete its plan.json and the folders from shard-00001 on: the 4 finished"):
        synthetic.build(tmp_path, 41, 4)
    (tmp_path / "plan.json").unlink()
    for folder in sorted(tmp_path.glob("shard-*"))[1:]:
        shutil.rmtree(folder)
    assert len(synthetic.build(tmp_path, 41, 4)) == 41
