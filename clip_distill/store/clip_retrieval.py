"""clip-retrieval's folder of embeddings, which autofaiss and embedding-reader read, too.

    FOLDER/img_emb/img_emb_0.npy          [N, D] float16 or float32, of unit length
    FOLDER/text_emb/text_emb_0.npy        the same of the captions
    FOLDER/metadata/metadata_0.parquet    N rows: image_path, caption, or both

Row i of all three is one sample. The layout is that of clip-retrieval 2's `OutputSink`
(github.com/rom1504/clip-retrieval, clip_inference/writer.py): a number per part, zero-filled to equal length.
Shapes: N rows, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_distill.corpus.pairs import find_photos
from clip_distill.store.build import EmbedParts, Part
from clip_distill.store.manifest import Manifest
from clip_distill.store.table import Store
from clip_distill.store.write import Shard
from clip_distill.system.errors import AlreadyExists, InvalidValue, NotFound
from clip_distill.system.files import aside
from clip_distill.system.talk import progress
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec

KINDS = {"image": ("img_emb", "image_path"), "text": ("text_emb", "caption")}
CHUNK = 65536  # rows in memory at a time


@dataclass(frozen=True)
class Column:
    """What one tower gives to an export: `store`'s rows `rows`, one for each sample."""

    store: Store
    rows: NDArray[np.int64]


def export(out: Path, columns: Mapping[str, Column], normalise: bool = True, rows_per_file: int = 1_000_000) -> int:
    """Write samples as a folder; plain views only.

    Args:
        out: The folder, which must not exist.
        columns: Tower → its side of the samples; with both towers, row i of one belongs to row i of the other.
        normalise: Scale to unit length, as clip-retrieval does and inner-product indices expect.
        rows_per_file: At most this many rows a part.

    Returns:
        N.

    Raises:
        FileExistsError: There is something at `out`.
    """
    if out.exists():
        raise AlreadyExists(f"{out} exists: name another --out, or remove it")
    total = len(next(iter(columns.values())).rows)
    parts = max(1, -(-total // rows_per_file))
    with aside(out) as beside, progress(total=total, desc="export", unit=" rows") as bar:
        for name in ("metadata", *(KINDS[tower][0] for tower in columns)):
            (beside / name).mkdir(parents=True)
        for part in range(parts):
            number = str(part).zfill(len(str(parts - 1)))
            chosen = slice(part * rows_per_file, min((part + 1) * rows_per_file, total))
            for tower, column in columns.items():
                folder = KINDS[tower][0]
                _write_part(beside / folder / f"{folder}_{number}.npy", column.store, column.rows[chosen], normalise)
            names = {KINDS[tower][1]: c.store.ids.take(pa.array(c.rows[chosen])) for tower, c in columns.items()}
            pq.write_table(pa.table(names), beside / "metadata" / f"metadata_{number}.parquet")
            bar.update(chosen.stop - chosen.start)
    return total


def _write_part(path: Path, store: Store, rows: NDArray[np.int64], normalise: bool) -> None:
    dtype = np.dtype(store.manifest.dtype)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (len(rows), store.manifest.dim)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), CHUNK):
            block = store.embeddings(rows[start : start + CHUNK])
            if normalise:
                length = np.linalg.norm(block.astype(np.float32), axis=1, keepdims=True)
                block = (block / np.maximum(length, 1e-12)).astype(dtype)
            file.write(block.tobytes())


@dataclass(frozen=True)
class Folder:
    """One tower's side of such a folder, as the import reads it.

    Args:
        names: [N] image paths or captions.
        parts: The arrays, memory-mapped, N rows in all.
    """

    names: pa.ChunkedArray
    parts: list[NDArray[Any]]

    @property
    def dtype(self) -> str:
        return str(self.parts[0].dtype)

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """[B, D] of the given rows."""
        starts = np.cumsum([0, *map(len, self.parts)])
        part = np.searchsorted(starts, rows, side="right") - 1
        out = np.empty((len(rows), self.parts[0].shape[1]), self.parts[0].dtype)
        for number in np.unique(part):
            chosen = part == number
            out[chosen] = self.parts[number][rows[chosen] - starts[number]]
        return out


def open_folder(folder: Path, tower: str, dim: int) -> Folder:
    """Open one tower's side, and check that embeddings and metadata fit together.

    Args:
        folder: What clip-retrieval, img2dataset's users or `export` wrote.
        tower: "image" or "text".
        dim: D of the teacher that is said to have made it.

    Raises:
        FileNotFoundError: There are no embeddings, or no metadata, for this tower.
        ValueError: Shapes, dtypes or numbers of rows do not fit.
    """
    kind, column = KINDS[tower]
    arrays = sorted((folder / kind).glob("*.npy"))
    tables = sorted((folder / "metadata").glob("*.parquet"))
    if not arrays or len(arrays) != len(tables):
        raise NotFound(
            f"{folder}: expected {kind}/{kind}_0.npy … and as many metadata/metadata_0.parquet …, found {len(arrays)} "
            f"and {len(tables)}"
        )
    parts, names = [], []
    for path, metadata in zip(arrays, tables, strict=True):
        parts.append(_map_part(path, dim))
        if column not in pq.read_schema(metadata).names:
            raise InvalidValue(f"{metadata}: expected a column {column!r}, found {pq.read_schema(metadata).names}")
        names.append(pq.read_table(metadata, columns=[column]).column(column).cast(pa.large_string()))
        if len(names[-1]) != len(parts[-1]):
            raise InvalidValue(
                f"{path}: expected a row for each of {metadata}'s {len(names[-1])}, found {len(parts[-1])}"
            )
        if parts[-1].dtype != parts[0].dtype:
            raise InvalidValue(f"{path}: expected {parts[0].dtype} as in {arrays[0].name}, found {parts[-1].dtype}")
    return Folder(pa.chunked_array([chunk for name in names for chunk in name.chunks], pa.large_string()), parts)


def _map_part(path: Path, dim: int) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2 or array.shape[1] != dim or str(array.dtype) not in ("float16", "float32"):
        raise InvalidValue(
            f"{path}: expected float16 or float32 [N, {dim}], the width of the teacher; found {array.dtype} "
            f"{list(array.shape)}. Is --teacher the one that made it?"
        )
    return array


def photo_ids(names: pa.ChunkedArray, images: pa.Table) -> pa.ChunkedArray:
    """The id of each named photo among those of `corpus.layout`; null where there is none.

    Raises:
        ValueError: There is none for any of them.
    """
    ids = images.column("id").combine_chunks()
    found = find_photos(pa.concat_arrays(names.chunks), ids)
    if found.null_count == len(found):
        raise InvalidValue(
            f"expected photos of the data named as in image_path, found none: image_path has {names[0].as_py()!r}, "
            f"the data {ids[0].as_py()!r}"
        )
    return pa.chunked_array([found])


def items_of(folder: Folder, ids: pa.ChunkedArray) -> pa.Table:
    """The first row of each id, as `build_table` takes them: `id`, `row`. Rows without an id are left out."""
    table = pa.table({"id": ids, "row": pa.array(np.arange(len(folder.names)))})
    table = table.filter(pa.compute.is_valid(table.column("id")))
    firsts = table.group_by("id", use_threads=False).aggregate([("row", "min")]).column("row_min")
    return table.filter(pa.compute.is_in(table.column("row"), value_set=firsts.combine_chunks()))


def read_with(folder: Folder) -> Callable[[Manifest], EmbedParts]:
    """For `build_table`: "embeds" by reading the folder; captions are tokenised as the teacher does."""

    def reader(made_by: Manifest) -> EmbedParts:
        def read_parts(items: pa.Table, parts: list[Part], numbers: range) -> Iterator[tuple[Part, Shard]]:
            for part in progress(parts, desc="import", unit=" shards"):
                some = items.slice(part.start, part.stop - part.start)
                ids = some.column("id").to_pylist()
                embeddings = folder.embeddings(np.asarray(some.column("row")))
                text = made_by.tower == "text"
                tokens = tokenize(TokenizerSpec(**made_by.teacher["tokenizer"]), ids) if text else None
                yield part, Shard(ids, [embeddings for _ in numbers], tokens)

        return read_parts

    return reader
