"""Which rows, at which view, make a batch: decided here alone, from (seed, epoch), never by workers or processes.

Shapes: N rows, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Items = NDArray[np.int64]  # [B, 2]: row and view of each
POOL_BATCHES = 64  # captions sorted by length at a time: padding falls to a few per cent, and batches still vary


def plain(rows: NDArray[np.int64]) -> Items:
    """[B] rows, each at its plain view."""
    return np.stack([rows, np.zeros_like(rows)], axis=1)


class EpochBatches(Sampler[Items]):
    """Every row once an epoch, in an order that depends on (seed, epoch) alone; this process's share of each batch.

    The batches of all processes together are those that one process would see with `batch_size · world`: process r
    takes rows r, r + world, … of each. One batch may be short; with several processes it is cut to a multiple of their
    number, since each must have equally many.

    Captions are batched with others of like length: random pools of 64 batches are each sorted by length and cut, and
    the batches of the whole epoch shuffled. Half of the tokens of a random batch would be padding.

    Args:
        rows: N.
        batch_size: Per process.
        views: How many stored views to choose from, at random; 0 asks for a fresh view each epoch (online).
        seed: Of the order and of the choice of views.
        rank: This process.
        world: Processes.
        lengths: [N] tokens of each caption; None does not sort.
        drawn: (n, m) where an epoch has the first n rows and m of the others, drawn anew; None for all rows.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        views: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        lengths: NDArray[np.int64] | None = None,
        drawn: tuple[int, int] | None = None,
    ) -> None:
        self.drawn = drawn
        self.rows, self.batch_size, self.views, self.seed = rows, batch_size, views, seed
        self.rank, self.world, self.lengths = rank, world, lengths
        self.epoch = 0
        self.skip = 0  # batches of the next epoch that a resumed run has already seen

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        rows = self.rows if self.drawn is None else sum(self.drawn)
        usable = rows - rows % self.world
        return -(-usable // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[Items]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self.rows)
        if self.drawn is not None:
            own, others = self.drawn
            fresh = own + random.choice(self.rows - own, others, replace=False)
            order = random.permutation(np.concatenate([np.arange(own), fresh]))
        order = order[: len(order) - len(order) % self.world]
        views = random.integers(self.views, size=self.rows) if self.views else np.full(self.rows, self.epoch + 1)
        size = self.batch_size * self.world
        starts = np.arange(0, len(order), size)
        if self.lengths is not None:
            pool = POOL_BATCHES * size
            pools = [order[start : start + pool] for start in range(0, len(order), pool)]
            order = np.concatenate([rows[np.argsort(self.lengths[rows], kind="stable")] for rows in pools])
            random.shuffle(starts)
        first, self.skip = self.skip, 0
        for start in starts[first:]:
            mine = order[start : start + size][self.rank :: self.world]
            yield np.stack([mine, views[mine]], axis=1)


class InOrder(Sampler[Items]):
    """Rows once, plain views, for validation: this process's share; captions from short to long, to pad little."""

    def __init__(
        self, rows: int, batch_size: int, rank: int = 0, world: int = 1, lengths: NDArray[np.int64] | None = None
    ) -> None:
        order = np.arange(rows) if lengths is None else np.argsort(lengths, kind="stable")
        self.mine, self.batch_size = order[rank::world], batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[Items]:
        for start in range(0, len(self.mine), self.batch_size):
            yield plain(self.mine[start : start + self.batch_size])
