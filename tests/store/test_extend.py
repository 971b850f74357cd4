"""Extending a finished table, interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clip_distill.store.build import build_table
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store

Contents = Callable[[Path], dict[str, bytes]]
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
        synthetic.build(tmp_path, 39, 4)
    (tmp_path / "plan.json").unlink()
    for folder in sorted(tmp_path.glob("shard-*"))[1:]:
        shutil.rmtree(folder)
    assert len(synthetic.build(tmp_path, 39, 4)) == 39


@pytest.mark.parametrize("begun", [0, 4], ids=["new", "growing"])
def test_what_is_new_since_an_interruption_is_added_once_the_planned_items_are_done(
    begun: int, synthetic: SimpleNamespace, tmp_path: Path, start: Start, wait_for: WaitFor, contents: Contents
) -> None:
    folders = tmp_path / "killed", tmp_path / "expected"
    for folder in folders:
        if begun:
            synthetic.build(folder, begun, 4)
    child = start(folders[0], 18, 4, pause=0.2)
    wait_for((folders[0] / "shard-00001").is_dir)
    child.kill()
    seen: list[str] = []
    # the new ones come first in the data
    items = synthetic.items(21).take(pa.array([20, 19, 18, *range(18)]))
    store = build_table(folders[0], synthetic.manifest(), items, synthetic.embed_with(seen=seen), 4)
    assert store is not None and len(store) == 21 and len(seen) < 21
    synthetic.build(folders[1], 18, 4)
    build_table(folders[1], synthetic.manifest(), items, synthetic.embed_with(), 4)
    assert contents(folders[0]) == contents(folders[1])
    assert build_table(folders[0], synthetic.manifest(), items, synthetic.embed_with(seen=(again := [])), 4)
    assert again == []


def test_a_skipped_item_that_can_be_read_now_is_added_and_no_longer_counted(
    synthetic: SimpleNamespace, tmp_path: Path, contents: Contents
) -> None:
    ids = synthetic.items(6).column(0).to_pylist()
    synthetic.build(tmp_path, 6, 4, bad=(ids[1], ids[4]))

    def build(good: list[str]) -> Store:
        seen: list[str] = []
        embed = synthetic.embed_with(seen=seen)
        table = build_table(
            tmp_path, synthetic.manifest(), synthetic.items(6), embed, 4, lambda some: np.isin(some.column(0), good)
        )
        assert table is not None and seen == good
        return table

    before = contents(tmp_path)
    build([])
    assert contents(tmp_path) == before
    table = build([ids[4]])
    assert (len(table), table.manifest.skipped) == (5, {"truncated": 1})
    np.testing.assert_array_equal(
        table.embeddings(table.find([ids[4]]))[0], synthetic.embedding(ids[4], 0).astype(np.float16)
    )
    before = contents(tmp_path)
    build([])
    assert contents(tmp_path) == before
    table = build([ids[1]])
    assert (len(table), table.manifest.skipped) == (6, {})
