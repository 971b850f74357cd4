"""An index over an export, built by autofaiss: are its neighbours those of brute force?

    clip-distill store export --store STORE --split train --out OUT
    python -m venv outside && outside/bin/pip install autofaiss 'pyarrow<21'
    outside/bin/python benchmarks/outside.py OUT/image

In an environment of its own, since autofaiss 2.18 needs a NumPy older than 2 (and so an older pyarrow than 26); nothing
of CLIP Distill is imported. Reads every row and its name through embedding-reader, which clip-retrieval uses, too; then
asks a flat index, which must be exact, and the index that autofaiss chooses by itself, for the neighbours of some rows.
Shapes: N rows, D embedding, Q queries, K neighbours.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from autofaiss import build_index
from embedding_reader import EmbeddingReader
from numpy.typing import NDArray

K = 10


def read_all(folder: Path, kind: str) -> tuple[NDArray[np.float32], list[str]]:
    """[N, D] and N names through embedding-reader, which must be the very numbers of the files."""
    names = sorted((folder / "metadata").iterdir())
    column = pq.read_schema(names[0]).names[0]
    reader = EmbeddingReader(str(folder / kind), "parquet_npy", metadata_folder=str(folder / "metadata"),
                             meta_columns=[column])  # fmt: skip
    parts = [(block.copy(), meta[column].tolist()) for block, meta in reader(batch_size=4096, show_progress=False)]
    embeddings = np.concatenate([block for block, _ in parts])
    found = [name for _, part in parts for name in part]
    if found != [name for path in names for name in pq.read_table(path).column(column).to_pylist()]:
        raise SystemExit(f"{folder}: embedding-reader gives other names than the metadata")
    if not np.array_equal(embeddings, np.concatenate([np.load(path) for path in sorted((folder / kind).iterdir())])):
        raise SystemExit(f"{folder}: embedding-reader gives other numbers than the files")
    return embeddings.astype(np.float32), found


def nearest(embeddings: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """[Q, K] inner products with the nearest rows, by brute force, largest first."""
    return -np.sort(-(queries @ embeddings.T), axis=1)[:, :K]


def recall(
    index: Any, embeddings: NDArray[np.float32], queries: NDArray[np.float32], expected: NDArray[np.float32]
) -> float:
    """Share of the K rows found that are as near as the K-th nearest, so that equal rows may stand for each other."""
    _, rows = index.search(queries, K)
    products = np.einsum("qkd,qd->qk", embeddings[rows], queries)
    return float((products >= expected[:, -1:] - 1e-5).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with img_emb/ or text_emb/, and metadata/")
    parser.add_argument("--queries", type=int, default=500, help="rows to ask for, drawn at random")
    arguments = parser.parse_args()
    [kind] = [name for name in ("img_emb", "text_emb") if (arguments.folder / name).is_dir()]
    embeddings, names = read_all(arguments.folder, kind)
    print(f"embedding-reader: {len(names):,} rows of {embeddings.shape[1]}, numbers and names as in the files")
    queries = embeddings[np.random.default_rng(0).choice(len(embeddings), arguments.queries, replace=False)]
    expected = nearest(embeddings, queries)
    for key in ("Flat", None):
        start = time.perf_counter()
        index, facts = build_index(str(arguments.folder / kind), index_key=key, save_on_disk=False, verbose=40)
        seconds = time.perf_counter() - start
        found = recall(index, embeddings, queries, expected)
        what = f"autofaiss, {key or 'its own choice'} ({facts['index_key']})"
        print(f"{what}: built in {seconds:.1f} s, {100 * found:.2f} % of the {K} nearest of {len(queries)} rows")
        if key == "Flat" and found < 1:
            raise SystemExit("expected a flat index to find the neighbours of brute force")


if __name__ == "__main__":
    main()
