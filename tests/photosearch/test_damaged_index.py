"""An index that is damaged, or can't be kept where it should."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_distill.photosearch.index import FILE, Facts, File, Index
from clip_distill.system.errors import InvalidValue, NotWritten

MADE_BY = {"student": "s", "dim": 8, "upright": False}


def filled(folder: Path, photos: int = 400) -> Index:
    index, rng = Index(folder, MADE_BY), np.random.default_rng(0)
    rows = [Facts(File(f"/photos/{n:06}.jpg", n, n), n, 20260101, 10, 10) for n in range(photos)]
    index.add([(row, rng.standard_normal(8).astype(np.float32)) for row in rows])
    for number in range(1, photos, 10):
        index.keep_thumb(number, b"x" * 3000)
    with index._connect() as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return index


@pytest.mark.parametrize("damage", ["pages", "cut", "junk", "empty"])
def test_a_damaged_index_is_set_aside_and_made_anew(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path)
    place, rng = tmp_path / FILE, random.Random(1)
    content = bytearray(place.read_bytes())
    for _ in range(2):
        page = rng.randrange(1, len(content) // 4096) * 4096
        content[page : page + 4096] = rng.randbytes(4096)
    shapes = {"pages": content, "cut": content[: len(content) // 2], "junk": rng.randbytes(5000), "empty": b""}
    place.write_bytes(shapes[damage])
    index = Index(tmp_path, MADE_BY)
    assert index.count() == 0
    said = capsys.readouterr().out
    assert ("the index is damaged" in said) == (damage != "empty")
    assert (tmp_path / "index.damaged").is_file() == (damage != "empty")
    filled(tmp_path)
    assert len(Index(tmp_path, MADE_BY).contents().paths) == 400


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20),
    cut=st.integers(0, 10**6),
)
def test_whatever_changed_an_index_is_right_or_made_anew(
    changes: list[tuple[int, int]], cut: int, tmp_path: Path
) -> None:
    source = tmp_path / "source" / FILE
    if not source.is_file():
        filled(source.parent, 50)
    content = bytearray(source.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    folder = tmp_path / "changed"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / FILE).write_bytes(content if cut % 3 else content[: cut % len(content)])
    try:
        index = Index(folder, MADE_BY)
    except InvalidValue as error:
        assert "expected an index made by" in str(error)
        return
    contents = index.contents()
    assert len(contents.paths) == len(contents.matrix) == index.count() <= 50
    assert len(index.files()) >= 0


def test_where_no_index_can_be_kept_the_way_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten, match=r"can't be kept there: .*--index, .*XDG_CACHE_HOME"):
        Index(tmp_path / "file" / "below", MADE_BY)
