"""A program that builds a table of made-up embeddings, slowly where asked: something to kill, and to run in parallel.

python synthetic.py FOLDER ROWS SHARD_ROWS PAUSE [VIEWS]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from clip_distill.store.build import EmbedParts, Part, build_table
from clip_distill.store.manifest import Manifest
from clip_distill.store.table import Store
from clip_distill.store.write import Shard

DIM = 8


def manifest(**changes: Any) -> Manifest:
    """Of an image table whose teacher gives 8 numbers."""
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    teacher = {"name": "made up", "weights_sha256": "0" * 64, "embed_dim": DIM, "logit_scale": 1.0}
    teacher |= {"model_cfg": {}, "preprocess": preprocess, "tokenizer": {"source": "clip"}}
    facts = {"views": 1, "augment": "none", "seed": 0, "dtype": "float16", "precision": "fp32"}
    return Manifest(**{"tower": "image", "split": "train", "teacher": teacher, **facts, **changes})


def items(rows: int) -> pa.Table:
    return pa.table({"id": pa.array([f"image/{row:05d}.jpg" for row in range(rows)], pa.large_string())})


def embedding(id: str, view: int) -> np.ndarray[Any, Any]:
    """[8] numbers that follow from the id and the view."""
    return np.sin(np.arange(DIM, dtype=np.float32) + sum(map(ord, id)) * (view + 1))


def embed_with(pause: float = 0, bad: tuple[str, ...] = (), seen: list[str] | None = None) -> Callable[..., EmbedParts]:
    """Takes `pause` seconds a shard, can't read the ids in `bad`, and notes in `seen` what it was asked for."""

    def embed_parts(items: pa.Table, parts: list[Part], numbers: range) -> Iterator[tuple[Part, Shard]]:
        for part in parts:
            time.sleep(pause)
            ids = items.column(0).slice(part.start, part.stop - part.start).to_pylist()
            if seen is not None:
                seen.extend(ids)
            good = [id for id in ids if id not in bad]
            empty = np.empty((0, DIM), np.float32)
            views = [np.stack([embedding(id, view) for id in good]) if good else empty for view in numbers]
            yield part, Shard(good, views, skipped={id: "truncated" for id in ids if id in bad})

    return lambda made_by: embed_parts


def build(folder: Any, rows: int, shard_rows: int, views: int = 1, **options: Any) -> Store | None:
    """Build a table; more than one view is augmented with `crop_flip`."""
    made_by = manifest(views=views, augment="crop_flip" if views > 1 else "none")
    return build_table(folder, made_by, items(rows), embed_with(**options), shard_rows)
