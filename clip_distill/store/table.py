"""Read a store: an immutable table, (id, view) → teacher embedding, that knows what made it.

    STORE/image-train/            one table: a tower and a split
      manifest.json               written last; a folder without it is unfinished
      shard-00000/
        rows.parquet              the ids of its N rows: an image's id, or the caption itself
        view-000.npy … view-V.npy [N, D] float16 or float32 each, not normalised
        tokens.npy offsets.npy    captions only: the teacher's tokens, ragged
        shard.json                row count, skipped ids with reasons, SHA-256 of the files above; written last

One file per view and one folder per shard, so that views and rows can be added without touching what is there.
Shapes: N rows, V views, D embedding, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_distill.data.tokens import Ragged
from clip_distill.files import read_json

FORMAT = 1
MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A store is missing, unfinished, or made from something else than is asked for."""


@dataclass(frozen=True)
class Manifest:
    """What a table holds and what made it. All but `rows`, `shards` and `skipped` is its fingerprint.

    Args:
        tower: "image" or "text": which of the teacher's towers made it.
        split: "train" or "val".
        teacher: Name, `weights_sha256` of the whole model, `model_cfg`, `preprocess`, `tokenizer`, `embed_dim`, `logit_scale`.
        views: V, how many views each row has. View 0 is the teacher's own preprocessing, without augmentation.
        augment: Name of the augmentation that made views 1 and up.
        seed: The view seed.
        dtype: Of the stored numbers, "float16" or "float32".
        precision: What the teacher computed in: "fp32", "bf16" or "fp16".
        rows: N.
        shards: A record per shard, `{"name", "rows", "sha256": {file: hex}}`.
        skipped: Reason → how many images or captions were left out for it.
        format: Version of this layout.
    """

    tower: str
    split: str
    teacher: dict[str, Any]
    views: int
    augment: str
    seed: int
    dtype: str
    precision: str
    rows: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def dim(self) -> int:
        """D."""
        return int(self.teacher["embed_dim"])

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two tables to hold the same numbers, flat: dotted key → value."""
        made_by = {"format": self.format, "tower": self.tower, "split": self.split, "views": self.views}
        made_by |= {"augment": self.augment, "seed": self.seed, "dtype": self.dtype, "precision": self.precision}
        return made_by | teacher_fingerprint(self.teacher)


def teacher_fingerprint(teacher: dict[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that names the teacher. Its name is left out: a copied folder is the same teacher."""
    keys = ("weights_sha256", "embed_dim", "preprocess", "tokenizer")
    return flatten({"teacher": {key: teacher.get(key) for key in keys}})


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(item) if isinstance(item, tuple) else item
    return flat


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for each key whose value differs, "key: expected …, found …"."""
    return [
        f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]


def require_same(what: str, expected: dict[str, Any], found: dict[str, Any], fix: str) -> None:
    """Raise a StoreError that lists every difference between two fingerprints, and the fix."""
    lines = differences(expected, found)
    if lines:
        raise StoreError(f"{what} was made from something else:\n  " + "\n  ".join(lines) + f"\n{fix}")


class Store:
    """One table, opened by its manifest; ids and embeddings are read when first asked for.

    A store may be sent to worker processes: memory maps are opened anew in each, since `np.memmap` pickles by value.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            state = "an unfinished store" if any(self.folder.glob("shard-*")) else "no store"
            raise StoreError(
                f"{self.folder}: expected a finished store ({MANIFEST}), found {state}. "
                "Run (or run again) `clip-distill embed`; it continues where it stopped."
            )
        found = read_json(self.folder / MANIFEST)
        if found.get("format") != FORMAT:
            raise StoreError(f"{self.folder}: expected store format {FORMAT}, found {found.get('format')}")
        self.manifest = Manifest(**found)
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self.manifest.shards)])
        self._maps: dict[tuple[int, str], NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def ids(self) -> pa.Array:
        """[N] strings: image ids, or the captions themselves."""
        names = [shard["name"] for shard in self.manifest.shards]
        tables = [pq.read_table(self.folder / name / "rows.parquet", columns=["id"]) for name in names]
        if not tables:
            return pa.array([], pa.large_string())
        return pa.concat_tables(tables).column("id").cast(pa.large_string()).combine_chunks()

    def find(self, ids: pa.Array | pa.ChunkedArray | list[str]) -> NDArray[np.int64]:
        """Row of each id; -1 where there is none."""
        needles = pa.array(ids, pa.large_string()) if isinstance(ids, list) else ids.cast(pa.large_string())
        rows = pc.index_in(needles, value_set=self.ids).fill_null(-1)
        return np.asarray(rows).astype(np.int64)

    def embeddings(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[Any]:
        """[B, D] stored embeddings of the given rows, each at its view; any order, repeats allowed."""
        rows = np.asarray(rows)
        views = np.broadcast_to(np.asarray(views), rows.shape)
        out = np.empty((len(rows), self.manifest.dim), self.manifest.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            for view in np.unique(views[shards == shard]):
                chosen = (shards == shard) & (views == view)
                out[chosen] = self._map(shard, f"view-{view:03d}.npy")[rows[chosen] - self._starts[shard]]
        return out

    def all_embeddings(self, view: int = 0) -> NDArray[Any]:
        """[N, D], in the order of `ids`."""
        parts = [self._map(shard, f"view-{view:03d}.npy") for shard in range(len(self.manifest.shards))]
        return np.concatenate(parts) if parts else np.empty((0, self.manifest.dim), self.manifest.dtype)

    @cached_property
    def tokens(self) -> Ragged:
        """The teacher's tokens of every caption, in the order of `ids`; a text store has them."""
        shards = range(len(self.manifest.shards))
        flats = [self._map(shard, "tokens.npy") for shard in shards]
        starts = np.cumsum([0, *map(len, flats)])
        offsets = [self._map(shard, "offsets.npy")[1:] + starts[shard] for shard in shards]
        flat = np.concatenate(flats) if flats else np.empty(0, np.uint16)
        return Ragged(flat, np.concatenate([np.zeros(1, np.int64), *offsets]))

    def _map(self, shard: int, name: str) -> NDArray[Any]:
        key = (int(shard), name)
        if key not in self._maps:
            path = self.folder / self.manifest.shards[shard]["name"] / name
            # mmap_mode refuses arrays of no bytes, which a shard of skipped rows has
            empty = self.manifest.shards[shard]["rows"] == 0
            self._maps[key] = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
        return self._maps[key]


def table_folder(root: Path | str, tower: str, split: str) -> Path:
    """Where `embed` puts one table below the folder that it is given."""
    return Path(root) / f"{tower}-{split}"


def open_table(root: Path | str, tower: str, split: str) -> Store:
    """Open one table of a store.

    Raises:
        StoreError: It is missing, unfinished, or of another tower or split than its place says.
    """
    store = Store(table_folder(root, tower, split))
    found = {"tower": store.manifest.tower, "split": store.manifest.split}
    require_same(str(store.folder), {"tower": tower, "split": split}, found, "The folder was renamed; rename it back.")
    return store
