"""A store whose files were changed or cut is read as it was, or refused by name; nothing else comes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_distill.recipes import read_recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.table import Store
from clip_distill.store.verify import problems
from clip_distill.system.errors import Error

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_a_changed_store_is_read_refused_or_found_out(data: st.DataObject, tiny_store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tiny_store, copy)
    before = open_table(str(tiny_store), "image", "val")
    files = sorted(path for path in (copy / "image-val").rglob("*") if path.is_file() and path.stat().st_size)
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    whole = data.draw(st.booleans())
    file.write_bytes(content if whole else content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        table = open_table(str(copy), "image", "val")
        rows, ids = table.embeddings(np.arange(len(table))), table.ids.to_pylist()
    except Error as error:
        assert "store" in str(error)
        return
    same = ids == before.ids.to_pylist() and np.array_equal(rows, before.embeddings(np.arange(len(before))))
    if not same:  # what opening does not look at, `store verify` does
        assert problems(Store(copy / "image-val"))


WORDS = st.sampled_from(
    ["tower", ": ", "text", "\n", "  ", "- ", "{", "}", "[", "&a", "*a", "!!python/name:os.system", "|"]
)


@FUZZ
@given(text=st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=20).map("".join)))
def test_a_made_up_recipe_is_read_or_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8", errors="ignore")
    try:
        assert isinstance(read_recipe(tmp_path / "r.yaml"), dict)
    except Error as error:
        assert "r.yaml" in str(error)
