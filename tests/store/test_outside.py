"""An export as other programs read it: embedding-reader, through which clip-retrieval and autofaiss do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_distill.cli import main as cli
from clip_distill.store.ensemble import open_table

embedding_reader = pytest.importorskip("embedding_reader", reason="needs embedding-reader, of the extra dev")


def read(folder: Path, kind: str, column: str) -> tuple[np.ndarray, list[str]]:
    """[N, D] embeddings and N names, in batches that don't end where files do."""
    reader = embedding_reader.EmbeddingReader(
        str(folder / kind), "parquet_npy", metadata_folder=str(folder / "metadata"), meta_columns=[column]
    )
    parts = [(block.copy(), meta[column].tolist()) for block, meta in reader(batch_size=5, show_progress=False)]
    return np.concatenate([block for block, _ in parts]), [name for _, names in parts for name in names]


@pytest.mark.parametrize("rows_per_file", [2, 1000])  # twelve parts, numbered with two digits, or one
def test_every_row_and_its_name_in_the_order_of_the_store(rows_per_file: int, tiny_store: Path, tmp_path: Path) -> None:
    options = ["--split", "val", "--normalise", "false", "--rows_per_file", str(rows_per_file)]
    cli.main(["store", "export", "--store", str(tiny_store), "--out", str(tmp_path / "out"), *options])
    for tower, kind, column in (("image", "img_emb", "image_path"), ("text", "text_emb", "caption")):
        table = open_table(tiny_store, tower, "val")
        embeddings, names = read(tmp_path / "out" / tower, kind, column)
        assert names == table.ids.to_pylist()
        np.testing.assert_array_equal(embeddings, table.all_embeddings())


def test_pairs_of_photo_and_caption(tiny_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    options = ["--split", "val", "--data", str(tiny_data), "--rows_per_file", "7"]
    cli.main(["store", "export", "--store", str(tiny_store), "--out", str(tmp_path / "out"), *options])
    images, photos = read(tmp_path / "out", "img_emb", "image_path")
    texts, captions = read(tmp_path / "out", "text_emb", "caption")
    assert (len(photos), len(set(photos)), len(set(captions))) == (24, 8, 24)
    for tower, found, names in (("image", images, photos), ("text", texts, captions)):
        table = open_table(tiny_store, tower, "val")
        plain = table.embeddings(table.find(names))
        np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6)
