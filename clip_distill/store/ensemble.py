"""Several teachers as one: a folder that names stores and how to combine them, read like any other store.

    ENSEMBLE/ensemble.json        {"stores": ["../b32", "../l14"], "combine": "concat"}

Nothing is copied. Each teacher's embedding is scaled to unit length first, so that none outweighs another: `concat`
puts them side by side, and the cosine of two samples is the mean of the teachers' cosines; `mean` averages them, which
takes teachers of one width that agree on directions (checkpoints of one training, say).
Shapes: N rows, B batch, D embedding.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clip_distill.store.manifest import Manifest, StoreError, require_same
from clip_distill.store.table import Store, table_folder
from clip_distill.system.errors import AlreadyExists, InvalidValue
from clip_distill.system.files import read_json, write_json
from clip_distill.system.remote import Location, locate
from clip_distill.tokens.ragged import Ragged

ENSEMBLE = "ensemble.json"
Combine = Literal["concat", "mean"]


def open_table(root: Location | str, tower: str, split: str) -> Store:
    """Open one table of a store, or of an ensemble of stores.

    Raises:
        StoreError: It is missing, unfinished, of another tower or split than its place says, or the ensemble's stores
            do not fit together.
    """
    root = locate(root)
    if isinstance(root, Path) and (root / ENSEMBLE).is_file():
        record = read_json(root / ENSEMBLE)
        tables = [open_table(_beside(root, name), tower, split) for name in record["stores"]]
        return Ensemble(root, tables, record["combine"])
    store = Store(table_folder(root, tower, split))
    found = {"tower": store.manifest.tower, "split": store.manifest.split}
    require_same(str(store.folder), {"tower": tower, "split": split}, found, "The folder was renamed; rename it back.")
    return store


def stores_of(root: Location | str) -> list[Location]:
    """The folder itself, or the stores that an ensemble combines, and those that they combine."""
    root = locate(root)
    if not (isinstance(root, Path) and (root / ENSEMBLE).is_file()):
        return [root]
    return [store for name in read_json(root / ENSEMBLE)["stores"] for store in stores_of(_beside(root, name))]


def write_ensemble(folder: Path, stores: Sequence[str], combine: Combine) -> None:
    """Name an ensemble: stores that lie below the same folder are found wherever that folder is moved.

    Raises:
        ValueError: There is one store only, or another way of combining than concat and mean.
        FileExistsError: The folder holds a store.
    """
    if len(stores) < 2 or combine not in ("concat", "mean"):
        raise InvalidValue(f"expected two stores or more, and concat or mean; found {list(stores)} and {combine!r}")
    if any(folder.glob("*/manifest.json")):
        raise AlreadyExists(f"{folder} holds a store; name another folder for the ensemble")
    relative = [name if "://" in name else os.path.relpath(name, folder) for name in stores]
    write_json(folder / ENSEMBLE, {"stores": relative, "combine": combine})


class Ensemble(Store):
    """The rows that all tables have, in the first one's order.

    Args:
        folder: The ensemble's.
        tables: One table of each store, of the same tower and split.
        combine: "concat" or "mean".

    Raises:
        StoreError: The tables differ in views, or in the photo under an id, or widths differ under "mean", or no row
            is in all of them.
    """

    def __init__(self, folder: Path, tables: Sequence[Store], combine: Combine) -> None:
        self.folder, self.tables, self.combine = folder, list(tables), combine
        first = tables[0]
        for table in tables[1:]:
            fix = "Embed with the same --views, --augment and --seed, so that all teachers saw the same views."
            require_same(f"{table.folder}, beside {first.folder},", _views(first.manifest), _views(table.manifest), fix)
        widths = [table.manifest.dim for table in tables]
        if combine == "mean" and len(set(widths)) > 1:
            raise StoreError(f"{folder}: expected teachers of one width to average, found {widths}; use concat")
        places = np.stack([table.find(first.ids) for table in tables])
        self._places = places[:, (places >= 0).all(axis=0)]
        if self._places.shape[1] == 0:
            raise StoreError(
                f"{folder}: expected rows that all stores have, found none; were they made from the same data?"
            )
        rows = self._places.shape[1]
        self.digest = hashlib.sha256("".join(table.digest for table in tables).encode()).hexdigest()
        self.manifest = replace(
            first.manifest, teacher=_together(tables, combine), rows=rows, dtype="float32", shards=[]
        )
        self.starts = np.array([0, rows])
        self._ids = first.ids.take(pa.array(self._places[0]))
        self._photos = self._same_photos()

    @property
    def ids(self) -> pa.Array:
        return self._ids

    def photos(self, rows: NDArray[np.int64]) -> pa.Table:
        return self._photos.take(pa.array(rows))

    def _same_photos(self) -> pa.Table:
        """[N] the photo of each row as the tables that know it agree."""
        parts = [table.photos(rows) for table, rows in zip(self.tables, self._places, strict=True)]
        known = parts[0]
        for table, part in zip(self.tables[1:], parts[1:], strict=True):
            other = pc.not_equal(known.column("digest"), part.column("digest")).fill_null(False)
            if pc.any(other).as_py():
                changed = self._ids.filter(other)
                raise StoreError(
                    f"{table.folder}, beside {self.tables[0].folder}: expected stores of the same photos, found "
                    f"{len(changed)} others under the same ids, for instance {changed[0].as_py()!r}. "
                    "Run `clip-distill embed` on one data folder for both."
                )
            both = zip(known.columns, part.columns, strict=True)
            known = pa.table([pc.coalesce(one, another) for one, another in both], schema=known.schema)
        return known

    def find(self, ids: pa.Array | pa.ChunkedArray | list[str]) -> NDArray[np.int64]:
        at_first = self.tables[0].find(ids)
        own = np.full(len(self.tables[0]) + 1, -1, np.int64)  # one more, for rows that the first lacks
        own[self._places[0]] = np.arange(len(self))
        return own[at_first]

    def embeddings(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[Any]:
        rows = np.asarray(rows)
        parts = [
            _unit(table.embeddings(places[rows], views))
            for table, places in zip(self.tables, self._places, strict=True)
        ]
        return np.concatenate(parts, axis=1) if self.combine == "concat" else np.mean(parts, axis=0)

    def all_embeddings(self, view: int = 0) -> NDArray[Any]:
        return self.embeddings(np.arange(len(self)), view)

    @property
    def tokens(self) -> Ragged:
        return self.tables[0].tokens.take(self._places[0])


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def _views(manifest: Manifest) -> dict[str, Any]:
    """What of a table decides which pixels or captions a row's views are."""
    plain = manifest.views == 1
    drawn = {} if plain else {"augment": manifest.augment, "seed": manifest.seed}
    return {"tower": manifest.tower, "split": manifest.split, "views": manifest.views} | drawn


def _together(tables: Sequence[Store], combine: Combine) -> dict[str, Any]:
    """The record of an ensemble as a teacher: a student takes over the first one's preprocessing and tokenizer."""
    teachers = [table.manifest.teacher for table in tables]
    width = sum(t["embed_dim"] for t in teachers) if combine == "concat" else teachers[0]["embed_dim"]
    hashes = combine + "".join(t["weights_sha256"] for t in teachers)
    return teachers[0] | {
        "name": f"{combine} of " + ", ".join(t["name"] for t in teachers),
        "ensemble": [t["name"] for t in teachers],
        "weights_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "embed_dim": width,
        "logit_scale": float(np.mean([t["logit_scale"] for t in teachers])),
        "model_cfg": teachers[0]["model_cfg"] | {"embed_dim": width},
    }


def _beside(root: Path, name: str) -> str:
    return name if "://" in name else str(root / name)
