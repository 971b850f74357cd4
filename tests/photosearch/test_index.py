"""The index on disk: what goes in comes out, whole batches or nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_distill.photosearch.index import Facts, File, Index, packed, unpacked
from clip_distill.system.errors import InvalidValue

MADE_BY: dict[str, Any] = {"student": "s", "dim": 8}


def facts(name: str, size: int = 5) -> Facts:
    return Facts(File(name, size, 7), -3, 20261129, 640, 480)


def vectors(count: int, dim: int = 8) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("kind", "least"), [("float16", 0.99999), ("int8", 0.9995)])
def test_what_goes_in_comes_out(kind: Any, least: float, tmp_path: Path) -> None:
    index, rows = Index(tmp_path, MADE_BY, kind), vectors(3)
    index.add(zip([facts("b"), facts("a"), facts("c")], rows, strict=True), [(File("d", 1, 2), "truncated")])
    found = Index(tmp_path, MADE_BY, kind).contents()
    assert found.paths == ["b", "a", "c"] and found.ids.tolist() == [1, 2, 3] and found.taken.tolist() == [20261129] * 3
    assert found.sizes.tolist() == [[640, 480]] * 3 and ((found.matrix * rows).sum(1) > least).all()
    assert index.files()["d"] == (File("d", 1, 2), None) and index.files()["a"] == (File("a", 5, 7), -3)
    assert index.unread() == [("d", "truncated")] and index.count() == 3 and index.path_of(2) == "a"


def test_a_changed_photo_keeps_its_number_and_loses_its_thumbnail(tmp_path: Path) -> None:
    index, rows = Index(tmp_path, MADE_BY), vectors(2)
    index.add([(facts("a"), rows[0])])
    index.keep_thumb(1, b"small")
    assert index.thumb(1) == b"small"
    index.add([(facts("a", 6), rows[1])])
    found = index.contents()
    assert found.ids.tolist() == [1] and index.thumb(1) is None
    np.testing.assert_allclose(found.matrix[0], rows[1], atol=1e-3)
    index.add([], [(File("a", 7, 8), "damaged")])
    assert index.count() == 0 and index.unread() == [("a", "damaged")]
    index.add([(facts("a"), rows[0])])
    assert index.unread() == [] and index.contents().ids.min() > 1, "numbers are never given again"


def test_moved_and_removed(tmp_path: Path) -> None:
    index, rows = Index(tmp_path, MADE_BY), vectors(2)
    index.add(zip([facts("a"), facts("b")], rows, strict=True), [(File("x", 1, 1), "damaged")])
    index.move([("a", File("c", 5, 9))])
    index.remove(["b", "x", "nowhere"])
    assert index.files() == {"c": (File("c", 5, 9), -3)} and index.path_of(1) == "c"


def test_an_index_of_another_student_is_refused(tmp_path: Path) -> None:
    Index(tmp_path, MADE_BY)
    with pytest.raises(InvalidValue, match='expected an index made by .*"other".* found .*"s"'):
        Index(tmp_path, MADE_BY | {"student": "other"})
    with pytest.raises(InvalidValue, match="int8"):
        Index(tmp_path, MADE_BY, "int8")


def test_an_empty_index_is_one(tmp_path: Path) -> None:
    found = Index(tmp_path, MADE_BY).contents()
    assert found.matrix.shape == (0, 8) and found.sizes.shape == (0, 2) and found.paths == []


def test_a_kill_loses_no_batch_that_was_kept(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from clip_distill.photosearch.index import Facts, File, Index\n"
        "index = Index(Path(sys.argv[1]), {'student': 's', 'dim': 8})\n"
        "for batch in range(5):\n"
        "    files = [File(f'{batch}-{number}', 1, 1) for number in range(4)]\n"
        "    rows = [(Facts(file, 0, 20260101, 1, 1), np.ones(8, np.float32)) for file in files]\n"
        "    index.add(rows)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == -9
    assert Index(tmp_path, MADE_BY).count() == 20


def test_int8_keeps_directions() -> None:
    rows = vectors(50, 256)
    again = unpacked(np.stack([np.frombuffer(packed(row, "int8"), np.int8) for row in rows]))
    assert (rows * again).sum(1).min() > 0.9995
    assert packed(np.zeros(3, np.float32), "int8") == b"\0\0\0"
