"""Indexes of photos that other programs made, read as names and embeddings.

Shapes: N photos, D embedding.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_distill.store.clip_retrieval import open_folder
from clip_distill.store.ensemble import open_table
from clip_distill.store.table import table_folder
from clip_distill.system.errors import InvalidValue, NotFound

NAMES = ("image_path", "filepath", "path", "file_name", "filename", "assetId", "asset_id", "id", "url", "key")
VECTORS = ("embedding", "vector", "clip_embedding", "image_embedding")
KINDS = (
    "a store, a folder of clip-retrieval (img_emb/, metadata/), a .npy beside a .txt or .json of names, rclip's .db, "
    "or a .parquet with a column of names and one of embeddings"
)


@dataclass(frozen=True)
class Index:
    """Photos of an index.

    Args:
        kind: Which program's it is.
        names: [N] as that program calls the photos; paths, where it knows them.
        embeddings: float32 [N, D], of unit length.
        teacher: What made them, where that is known.
    """

    kind: str
    names: list[str]
    embeddings: NDArray[np.float32]
    teacher: dict[str, Any] | None = None


def open_index(place: str, split: str) -> Index:
    """Read an index, by what lies there.

    Args:
        place: A file or folder.
        split: Which of a store's tables.

    Raises:
        NotFound: Nothing is there.
        InvalidValue: It is none of the known kinds, or names and embeddings don't fit together.
    """
    path, suffix = Path(place), Path(place).suffix.lower()
    if "://" not in place and not path.exists():
        raise NotFound(f"--index {place}: expected {KINDS}, found nothing there")
    if (path / "img_emb").is_dir():
        index = _clip_retrieval(path)
    elif "://" in place or (path.is_dir() and any(Path(str(table_folder(place, "image", split))).glob("*"))):
        table = open_table(place, "image", split)
        embeddings = table.embeddings(np.arange(len(table)))
        index = Index("store", table.ids.to_pylist(), embeddings, table.manifest.teacher)
    elif suffix == ".npy":
        index = _array(path)
    elif suffix in (".db", ".sqlite", ".sqlite3"):
        index = _rclip(path)
    elif suffix == ".parquet":
        index = _parquet(path)
    else:
        raise InvalidValue(f"--index {place}: expected {KINDS}, found something else")
    return _checked(place, index)


def _checked(place: str, index: Index) -> Index:
    """The index with embeddings of unit length.

    Raises:
        InvalidValue: There is none, their number differs, or one is not finite or all zeros.
    """
    rows = index.embeddings
    if rows.ndim != 2 or not len(rows) or len(rows) != len(index.names):
        raise InvalidValue(
            f"{place}: expected an embedding for each name, found {list(rows.shape)} and {len(index.names)}"
        )
    wide = rows.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    for what, bad in (("not finite (NaN or infinite)", ~np.isfinite(length)), ("all zeros", length == 0)):
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise InvalidValue(
                f"{place}: expected finite embeddings with a direction, found {int(bad.sum())} of {len(rows)} that are "
                f"{what}, the first of {index.names[first]!r} (row {first})"
            )
    if len(set(index.names)) < len(index.names):
        twice, times = Counter(index.names).most_common(1)[0]
        raise InvalidValue(f"{place}: expected each photo once, found {twice!r} {times} times")
    return Index(index.kind, index.names, wide / length, index.teacher)


def _clip_retrieval(folder: Path) -> Index:
    first = next(iter(sorted((folder / "img_emb").glob("*.npy"))), None)
    if first is None:
        raise NotFound(f"{folder}: expected img_emb/img_emb_0.npy, found no .npy there")
    opened = open_folder(folder, "image", np.load(first, mmap_mode="r", allow_pickle=False).shape[1])
    return Index("clip-retrieval", opened.names.to_pylist(), np.concatenate(opened.parts))


def _array(path: Path) -> Index:
    """An array, and names in a file of the same name: a line each, or a JSON list."""
    text, listed = path.with_suffix(".txt"), path.with_suffix(".json")
    if text.is_file():
        names = text.read_text(encoding="utf-8-sig").splitlines()
    elif listed.is_file():
        names = [str(name) for name in json.loads(listed.read_text(encoding="utf-8"))]
    else:
        raise NotFound(
            f"{path}: expected the photos' names in {text.name} (a line each) or {listed.name}, found neither"
        )
    return Index("array", names, np.load(path, allow_pickle=False))


def _rclip(path: Path) -> Index:
    """Photos of rclip's database that are not deleted (github.com/yurijmikhalevich/rclip, rclip/db.py)."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT filepath, vector FROM images WHERE deleted IS NULL ORDER BY id").fetchall()
        except sqlite3.Error as error:
            raise InvalidValue(f"{path}: expected rclip's table `images`, found: {error}") from error
    blobs = [np.frombuffer(vector, np.float32) for _, vector in rows]
    if len({len(blob) for blob in blobs}) > 1:
        raise InvalidValue(f"{path}: expected vectors of one width, found {sorted({len(blob) for blob in blobs})}")
    return Index("rclip", [name for name, _ in rows], np.stack(blobs) if blobs else np.empty((0, 0), np.float32))


def _parquet(path: Path) -> Index:
    """Names and embeddings as columns, as Immich's table `smart_search` is exported: lists, or pgvector's text."""
    table = pq.read_table(path)
    there = {name.lower(): name for name in table.column_names}
    name, vector = (next((there[n.lower()] for n in known if n.lower() in there), None) for known in (NAMES, VECTORS))
    if name is None or vector is None:
        raise InvalidValue(
            f"{path}: expected a column of names ({', '.join(NAMES)}) and one of embeddings ({', '.join(VECTORS)}), "
            f"found {', '.join(table.column_names)}"
        )
    column = table.column(vector)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        lists = [json.loads(text) for text in column.to_pylist()]
    else:
        lists = column.to_pylist()
    if len({len(each) for each in lists}) > 1:
        raise InvalidValue(f"{path}: expected embeddings of one width, found several")
    return Index("parquet", pc.cast(table.column(name), pa.string()).to_pylist(), np.array(lists, np.float32))
