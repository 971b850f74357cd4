"""From a few measured batches to hours and bytes: arithmetic alone, nothing is run or read here.

Shapes: N rows, V views, D embedding, T tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_distill.store.manifest import Manifest
from clip_distill.store.table import view_file
from clip_distill.system.errors import InvalidValue

NPY_HEADER = 128  # bytes, of a one- or two-dimensional array
DIGEST = "0" * 64


@dataclass(frozen=True)
class Rate:
    """What was measured: so many items in so many seconds."""

    items: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.items / self.seconds

    def seconds_for(self, items: float) -> float:
        """Extrapolated: `items` at the same rate."""
        return items * self.seconds / self.items


def sample_rows(total: int, count: int, seed: int = 0) -> NDArray[np.int64]:
    """[count] rows spread evenly over all, shuffled, so that any first part of them is a fair sample, too.

    Where there are fewer than `count`, all come once before any comes again.
    """
    spread = np.linspace(0, total, min(count, total), endpoint=False).astype(np.int64)
    return np.resize(np.random.default_rng(seed).permutation(spread), count)


def largest_batch(room: float, bytes_per_sample: float, most: int) -> int:
    """Samples whose activations fit into `room` bytes; never more than `most`, and 0 where not one fits."""
    return most if bytes_per_sample <= 0 else max(0, min(most, int(room // bytes_per_sample)))


def grow(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest of `start`·2ᵏ, at most `most`, that `fits`: doubled until one fails, or halved until one fits.

    0 where not even one sample fits.
    """
    size = min(start, most)
    if not fits(size):
        while size > 1:
            size //= 2
            if fits(size):
                return size
        return 0
    while size < most and fits(min(2 * size, most)):
        size = min(2 * size, most)
    return size


def table_bytes(
    made_by: Manifest, rows: int, shard_rows: int, id_bytes: float, tokens: float = 0.0, token_bytes: int = 2
) -> dict[str, int]:
    """Disk of one table of a store, by what the bytes are for.

    Args:
        made_by: What the table is to be made by; its V, D and dtype count, and its length as JSON.
        rows: N.
        shard_rows: Rows per shard.
        id_bytes: Per row of `rows.parquet`, compressed.
        tokens: T of a whole text table.
        token_bytes: Of one token.

    Returns:
        "embeddings", "tokens", "ids" and "records" (the JSON files), in bytes. Exact but for `id_bytes` and `tokens`,
        which are extrapolated from a sample.
    """
    shards = math.ceil(rows / shard_rows)
    embeddings = rows * made_by.views * made_by.dim * np.dtype(made_by.dtype).itemsize
    embeddings += shards * made_by.views * NPY_HEADER
    is_text = made_by.tower == "text"
    token_files = round(tokens * token_bytes) + 8 * (rows + shards) + 2 * NPY_HEADER * shards if is_text else 0
    files = ["rows.parquet", *map(view_file, range(made_by.views)), *(["offsets.npy", "tokens.npy"] if is_text else [])]
    shard = {"name": "shard-00000", "rows": shard_rows, "sha256": dict.fromkeys(files, DIGEST)}
    plan = made_by.fingerprint() | {"items": rows, "items_sha256": DIGEST, "shard_rows": shard_rows, "extends": DIGEST}
    records = json_bytes(asdict(made_by)) + json_bytes(plan) + 2 * shards * json_bytes(shard)
    return {"embeddings": embeddings, "tokens": token_files, "ids": round(rows * id_bytes), "records": records}


def json_bytes(value: Any) -> int:
    """Length of `files.write_json`'s text."""
    return len(json.dumps(value, ensure_ascii=False, indent=1).encode()) + 1


def shard_buffer_bytes(made_by: Manifest, rows: int) -> int:
    """Memory that a shard of so many rows takes until it is written: float32 twice, batch by batch and joined, and one
    view twice more as it is stored and as its file's content."""
    return rows * made_by.dim * (8 * made_by.views + 2 * np.dtype(made_by.dtype).itemsize)


def run_bytes(parameters: int, trainable: int, average: bool) -> int:
    """Disk of a run, in float32: the best and the last checkpoint and the student; the last has Adam's two moments of
    what trains, and both have the average of the weights where one is kept."""
    return 4 * ((5 if average else 3) * parameters + 2 * trainable)


@dataclass(frozen=True)
class FitSeconds:
    """Extrapolated times of a run, in seconds."""

    epoch: float
    validation: float
    total: float


def fit_seconds(
    step: Rate, validation: Rate, metrics: float, *, steps: int, val_rows: int, epochs: int, max_steps: int, every: int
) -> FitSeconds:
    """Times of a run.

    Args:
        step: Measured training steps.
        validation: Measured rows of the validation.
        metrics: Measured seconds of ranking the whole validation set.
        steps: Of an epoch.
        val_rows: Rows that the student embeds to validate.
        epochs: The Trainer's `max_epochs`; -1 for as many as `max_steps` take.
        max_steps: The Trainer's; -1 for no limit.
        every: Epochs from one validation to the next.
    """
    if epochs < 0 and max_steps < 0:
        raise InvalidValue("expected trainer.max_epochs or trainer.max_steps, found neither: the run would never end")
    ends = [limit for limit in (epochs * steps, max_steps) if limit >= 0]
    total_steps = min(ends)
    once = validation.seconds_for(val_rows) + metrics
    validations = total_steps // steps // every
    return FitSeconds(step.seconds_for(steps), once, step.seconds_for(total_steps) + validations * once)
