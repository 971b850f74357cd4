"""Read a store: an immutable table, (id, view) → teacher embedding, that knows what made it.

    STORE/image-train/            one table: a tower and a split
      manifest.json               written last; a folder without it is unfinished
      plan.json                   which items make which shard, of the last `embed`; only that reads it,
      plan-items.parquet          and their ids; deleted when that `embed` ends (behind a URL, it stays)
      shard-00000/
        rows.parquet              `id` of its N rows: an image's id, or the caption itself; of photos that `embed` read
                                  also `digest` (uint64, the first 8 bytes of its encoded bytes' BLAKE2b, little-endian)
                                  and `bytes` (int64, how many those are)
        view-000.npy … view-V.npy [N, D] float16 or float32 each, not normalised
        tokens.npy offsets.npy    captions only: the teacher's tokens, ragged
        shard.json                row count, skipped ids with reasons, SHA-256 of the files above; written last

One file per view and one folder per shard, so that views and rows can be added without touching what is there.
Shapes: N rows, V views, D embedding, B batch.
"""

from __future__ import annotations

import hashlib
import itertools
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_distill.store.arrays import data_offset, open_files, raw, read_into
from clip_distill.store.lookup import find_in_parts
from clip_distill.store.manifest import MANIFEST, StoreError, damaged, read_manifest
from clip_distill.system.remote import Location, local_copy, locate
from clip_distill.tokens.ragged import Ragged, starts

ROWS = "rows.parquet"
PHOTOS = pa.schema({"digest": pa.uint64(), "bytes": pa.int64()})
NO_IDS = pa.array([], pa.large_string())
FIND_ROWS = 1_000_000


class Store:
    """One table, opened by its manifest; ids and embeddings are read when first asked for.

    A store may be sent to worker processes, which open its files anew, and be used in several threads.

    Args:
        folder: A folder, or a URL that fsspec knows; of the latter, files are downloaded as they are needed.

    Attributes:
        manifest: What the table holds and what made it.
        digest: SHA-256 of the manifest: of the whole table, since the manifest has those of all files.
        starts: First row of each shard, and N.

    Raises:
        StoreError: There is no finished store, or one of another format.
    """

    def __init__(self, folder: Location | str) -> None:
        self.folder = locate(folder)
        if not (self.folder / MANIFEST).is_file():
            state = "an unfinished store" if any(self.folder.glob("shard-*")) else "no store"
            raise StoreError(
                f"{self.folder}: expected a finished store ({MANIFEST}), found {state}. "
                "Run (or run again) `clip-distill embed`; it continues where it stopped."
            )
        content = (self.folder / MANIFEST).read_bytes()
        self.manifest = read_manifest(str(self.folder / MANIFEST), content)
        self.starts = np.cumsum([0, *(shard["rows"] for shard in self.manifest.shards)])
        self.digest = hashlib.sha256(content).hexdigest()
        self._offsets: dict[tuple[int, int], int] = {}
        self._open = lru_cache(open_files())(self._open_view)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open = lru_cache(open_files())(self._open_view)

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def ids(self) -> pa.Array:
        """[N] strings: image ids, or the captions themselves."""
        return pa.concat_arrays([NO_IDS, *map(self._shard_ids, range(self._shards))])

    def photos(self, rows: NDArray[np.int64]) -> pa.Table:
        """[B] which photo each of the rows is of: `digest` and `bytes`; null where nobody knows, as of captions."""
        everything = pa.concat_tables([PHOTOS.empty_table(), *map(self._shard_photos, range(self._shards))])
        return everything.take(pa.array(rows))

    def find(self, ids: pa.Array | pa.ChunkedArray | list[str]) -> NDArray[np.int64]:
        """Row of each id; -1 where there is none."""
        needles = pa.array(ids, pa.large_string()) if isinstance(ids, list) else ids.cast(pa.large_string())
        if isinstance(needles, pa.ChunkedArray):
            needles = needles.chunk(0) if needles.num_chunks == 1 else pa.concat_arrays([NO_IDS, *needles.chunks])
        runs = _runs(self.starts, FIND_ROWS)
        parts = (pa.concat_arrays([NO_IDS, *map(self._shard_ids, range(*run))]) for run in runs)
        if len(self) <= FIND_ROWS:  # one part, for which Arrow's hash table is small and fast
            return np.asarray(pc.index_in(needles, value_set=next(parts, NO_IDS)).fill_null(-1)).astype(np.int64)
        return find_in_parts(needles, parts, FIND_ROWS)

    def embeddings(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[Any]:
        """[B, D] stored embeddings of the given rows, each at its view; any order, repeats allowed.

        Raises:
            StoreError: There is no such row or view.
        """
        rows = np.asarray(rows)
        views = np.broadcast_to(np.asarray(views), rows.shape)
        for what, asked, count in (("rows", rows, len(self)), ("views", views, self.manifest.views)):
            if rows.size and (asked.min() < 0 or asked.max() >= count):
                asked_for = f"{asked.min()} … {asked.max()}"
                raise StoreError(f"{self.folder}: expected {what} from 0 up to {count - 1}, found {asked_for}")
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.lexsort((rows, views, shards))
        shards, views, rows = shards[order], views[order], rows[order]
        # rows that follow each other in a file are one read
        apart = (np.diff(shards) != 0) | (np.diff(views) != 0) | (np.diff(rows) != 1)
        firsts = np.flatnonzero(np.concatenate([np.ones(min(1, len(rows)), bool), apart]))
        out = np.empty((len(rows), self.manifest.dim), self.manifest.dtype)
        content, width = raw(out), out.strides[0]
        places = (rows - self.starts[shards])[firsts] * width
        bounds = itertools.pairwise([*(firsts * width).tolist(), len(content)])
        files = zip(shards[firsts].tolist(), views[firsts].tolist(), places.tolist(), bounds, strict=True)
        for shard, view, place, (start, stop) in files:
            file, offset = self._open(shard, view)
            with damaged(self.folder):
                read_into(content[start:stop], file, offset + place)
        as_asked = np.empty_like(out)
        as_asked[order] = out
        return as_asked

    def all_embeddings(self, view: int = 0) -> NDArray[Any]:
        """[N, D], in the order of `ids`."""
        out = np.empty((len(self), self.manifest.dim), self.manifest.dtype)
        for shard, (start, stop) in enumerate(itertools.pairwise(self.starts.tolist())):
            with damaged(self.folder):
                read_into(raw(out[start:stop]), *self._open(shard, view))
        return out

    def _open_view(self, shard: int, view: int) -> tuple[IO[bytes], int]:
        """A file, and where its numbers begin."""
        with damaged(self.folder):
            path = self.file(shard, view_file(view))
            if (shard, view) not in self._offsets:
                shape = (self.manifest.shards[shard]["rows"], self.manifest.dim)
                self._offsets[shard, view] = data_offset(path, shape, self.manifest.dtype)
            return open(path, "rb", buffering=0), self._offsets[shard, view]

    @cached_property
    def tokens(self) -> Ragged:
        """The teacher's tokens of every caption, in the order of `ids`; a text store has them."""
        with damaged(self.folder):
            return self._read_tokens()

    def _read_tokens(self) -> Ragged:
        lengths = [np.diff(np.load(self.file(shard, "offsets.npy"))) for shard in range(self._shards)]
        offsets = starts(np.concatenate([np.empty(0, np.int64), *lengths]))
        flat = np.empty(0, np.uint16)
        for shard in range(self._shards):
            part = np.load(self.file(shard, "tokens.npy"))
            if shard == 0:
                flat = np.empty(offsets[-1], part.dtype)
            start = offsets[self.starts[shard]]
            flat[start : start + len(part)] = part
        return Ragged(flat, offsets)

    def file(self, shard: int, name: str) -> Path:
        """One file of a shard, on this machine: itself, or a checked copy of a remote one."""
        record = self.manifest.shards[shard]
        return local_copy(self.folder / record["name"] / name, record["sha256"][name])

    @property
    def _shards(self) -> int:
        return len(self.manifest.shards)

    def _shard_ids(self, shard: int) -> pa.Array:
        with damaged(self.folder):
            column = pq.read_table(self.file(shard, ROWS), columns=["id"]).column("id").cast(pa.large_string())
            return pa.concat_arrays([NO_IDS, *column.chunks])

    def _shard_photos(self, shard: int) -> pa.Table:
        with damaged(self.folder):
            rows = pq.read_table(self.file(shard, ROWS))
        if "digest" in rows.column_names:
            return rows.select(PHOTOS.names).cast(PHOTOS)
        return pa.table([pa.nulls(len(rows), kind) for kind in PHOTOS.types], schema=PHOTOS)


def view_file(view: int) -> str:
    """Name of the file that holds one view of a shard."""
    return f"view-{view:03d}.npy"


def _runs(bounds: NDArray[np.int64], rows: int) -> list[tuple[int, int]]:
    """Cut shards into runs (first, last + 1) of at least `rows` rows each, but for the last."""
    runs, first = [], 0
    for shard in range(1, len(bounds)):
        if bounds[shard] - bounds[first] >= rows or shard == len(bounds) - 1:
            runs.append((first, shard))
            first = shard
    return runs


def table_folder(root: Location | str, tower: str, split: str) -> Location:
    """Where `embed` puts one table below the folder, or the URL, that it is given."""
    return locate(root) / f"{tower}-{split}"
