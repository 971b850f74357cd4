"""Indexes of other programs, read and refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_distill.store.foreign import open_index
from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.verbs.store import export

ROWS = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
UNIT = np.array([[0.6, 0.8], [0.0, 1.0]], np.float32)
NAMES = ["a.jpg", "b/c.jpg"]


def rclip(path: Path, vectors: list[bytes]) -> Path:
    """A database as rclip 3.3 makes it; its third photo is deleted."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE images (id INTEGER PRIMARY KEY, deleted BOOLEAN, filepath TEXT NOT NULL UNIQUE, "
            "modified_at DATETIME NOT NULL, size INTEGER NOT NULL, vector BLOB NOT NULL, indexing BOOLEAN, hash TEXT)"
        )
        for number, vector in enumerate(vectors):
            row = (None if number < 2 else True, [*NAMES, "gone.jpg"][number], 0, 1, vector)
            database.execute(
                "INSERT INTO images (deleted, filepath, modified_at, size, vector) VALUES (?,?,?,?,?)", row
            )
        database.commit()
    return path


def array(path: Path, listed: bool) -> Path:
    np.save(path, ROWS.astype(np.float16))
    if listed:
        path.with_suffix(".json").write_text(json.dumps(NAMES), encoding="utf-8")
    else:
        path.with_suffix(".txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return path


def parquet(path: Path, as_text: bool) -> Path:
    vectors = [json.dumps(row) for row in ROWS.tolist()] if as_text else ROWS.tolist()
    pq.write_table(pa.table({"assetId": NAMES, "embedding": vectors}), path)
    return path


@pytest.mark.parametrize("kind", ["rclip", "array, txt", "array, json", "parquet, lists", "parquet, pgvector"])
def test_names_and_embeddings_are_read(kind: str, tmp_path: Path) -> None:
    if kind == "rclip":
        place = rclip(tmp_path / "db.sqlite3", [*(row.tobytes() for row in ROWS), b"\0" * 8])
    elif kind.startswith("array"):
        place = array(tmp_path / "index.npy", kind.endswith("json"))
    else:
        place = parquet(tmp_path / "smart_search.parquet", kind.endswith("pgvector"))
    index = open_index(str(place), "val")
    assert index.names == NAMES and index.teacher is None and index.kind == kind.split(",")[0]
    np.testing.assert_allclose(index.embeddings, UNIT, atol=1e-3)


def test_a_store_and_its_export_are_the_same_index(tiny_store: Path, tmp_path: Path) -> None:
    index = open_index(str(tiny_store), "val")
    assert len(index.names) == 8 and index.kind == "store" and index.teacher is not None
    export(str(tiny_store), str(tmp_path / "out"), split="val")
    other = open_index(str(tmp_path / "out/image"), "val")
    assert other.names == index.names and other.kind == "clip-retrieval"
    np.testing.assert_allclose(other.embeddings, index.embeddings, atol=1e-6)


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="expected a store, .* found nothing there"):
        open_index(str(tmp_path / "none"), "val")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InvalidValue, match="expected a store, .* found something else"):
        open_index(str(tmp_path / "photo.jpg"), "val")
    with pytest.raises(InvalidValue, match="expected a store, .* found something else"):
        open_index(str(tmp_path), "val")
    np.save(tmp_path / "alone.npy", ROWS)
    with pytest.raises(NotFound, match=r"alone\.txt \(a line each\) or alone\.json, found neither"):
        open_index(str(tmp_path / "alone.npy"), "val")
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(InvalidValue, match="expected rclip's table `images`, found: no such table"):
        open_index(str(tmp_path / "other.db"), "val")
    pq.write_table(pa.table({"what": ["a"], "numbers": [[1.0]]}), tmp_path / "other.parquet")
    with pytest.raises(InvalidValue, match="found what, numbers"):
        open_index(str(tmp_path / "other.parquet"), "val")


def test_embeddings_that_do_not_fit_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "index.npy", ROWS)
    (tmp_path / "index.txt").write_text("a.jpg\n", encoding="utf-8")
    with pytest.raises(InvalidValue, match=r"expected an embedding for each name, found \[2, 2\] and 1"):
        open_index(str(tmp_path / "index.npy"), "val")
    np.save(tmp_path / "index.npy", np.zeros((1, 2), np.float32))
    with pytest.raises(InvalidValue, match="finite embeddings with a direction, found 1 of 1 that are all zeros"):
        open_index(str(tmp_path / "index.npy"), "val")
    place = rclip(tmp_path / "db.db", [b"\0" * 8, b"\0" * 12])
    with pytest.raises(InvalidValue, match=r"expected vectors of one width, found \[2, 3\]"):
        open_index(str(place), "val")
