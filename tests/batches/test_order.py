"""Which rows make a batch: each once an epoch, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_distill.batches.order import EpochBatches, InOrder, Items


def lengths_of(rows: int, sort: bool) -> NDArray[np.int64] | None:
    return np.random.default_rng(1).integers(5, 40, rows) if sort else None


def rows_of(batches: list[Items]) -> list[int]:
    return [row for batch in batches for row in batch[:, 0].tolist()]


def pairs_of(batches: Iterable[Items]) -> list[list[tuple[int, int]]]:
    """(row, view) of each item of each batch."""
    return [[(row, view) for row, view in batch.tolist()] for batch in batches]


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (8, 4), (23, 4), (300, 4), (5, 100)])
def test_every_row_comes_once_an_epoch(rows: int, batch_size: int, sort: bool) -> None:
    sampler = EpochBatches(rows, batch_size, lengths=lengths_of(rows, sort))
    batches = list(sampler)
    assert sorted(rows_of(batches)) == list(range(rows))
    assert len(batches) == len(sampler) == -(-rows // batch_size)
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("sort", [False, True])
def test_the_order_depends_on_seed_and_epoch_alone(sort: bool) -> None:
    def epoch(seed: int, number: int) -> list[list[tuple[int, int]]]:
        sampler = EpochBatches(50, 8, 3, seed, lengths=lengths_of(50, sort))
        sampler.set_epoch(number)
        np.random.seed(seed + number)
        return pairs_of(sampler)

    assert epoch(0, 3) == epoch(0, 3)
    orders = [[row for batch in epoch(*key) for row, _ in batch] for key in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(one != other for place, one in enumerate(orders) for other in orders[:place])


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize(("rows", "world"), [(48, 2), (50, 2), (51, 2), (50, 3)])
def test_the_shares_of_all_processes_are_the_batches_of_one(rows: int, world: int, sort: bool) -> None:
    lengths = lengths_of(rows, sort)
    shares = [list(EpochBatches(rows, 4, 2, 9, rank, world, lengths)) for rank in range(world)]
    samplers = [EpochBatches(rows, 4, 2, 9, rank, world, lengths) for rank in range(world)]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    together = [np.concatenate(parts) for parts in zip(*shares, strict=True)]
    assert all(len({len(part) for part in parts}) == 1 for parts in zip(*shares, strict=True))
    seen = rows_of(together)
    assert len(set(seen)) == len(seen) == rows - rows % world
    if rows % world == 0:
        alone = pairs_of(EpochBatches(rows, 4 * world, 2, 9, lengths=lengths))
        assert [sorted(batch) for batch in pairs_of(together)] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize("sort", [False, True])
def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole(sort: bool) -> None:
    sampler = EpochBatches(50, 8, lengths=lengths_of(50, sort))
    whole = pairs_of(sampler)
    sampler.skip = 3
    assert pairs_of(sampler) == whole[3:]
    assert pairs_of(sampler) == whole


def test_captions_of_like_length_come_together_in_a_random_order() -> None:
    lengths = lengths_of(4000, sort=True)
    assert lengths is not None

    def padding(sampler: EpochBatches) -> float:
        batches = [lengths[batch[:, 0]] for batch in sampler]
        return 1 - sum(b.sum() for b in batches) / sum(len(b) * b.max() for b in batches)

    assert padding(EpochBatches(4000, 32, lengths=lengths)) < 0.05 < padding(EpochBatches(4000, 32))
    means = [lengths[batch[:, 0]].mean() for batch in EpochBatches(4000, 32, lengths=lengths)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4


def test_stored_views_are_chosen_at_random_and_online_ones_are_new_each_epoch() -> None:
    stored = np.concatenate(list(EpochBatches(600, 10, views=3)))[:, 1]
    assert np.bincount(stored, minlength=3).min() > 150
    online = EpochBatches(6, 3, views=0)
    for epoch in range(3):
        online.set_epoch(epoch)
        assert all((batch[:, 1] == epoch + 1).all() for batch in online)


@pytest.mark.parametrize(("rows", "world"), [(10, 1), (10, 3), (2, 3)])
def test_validation_sees_every_row_once_at_its_plain_view(rows: int, world: int) -> None:
    samplers = [InOrder(rows, 4, rank, world) for rank in range(world)]
    batches = pairs_of(chain(*samplers))
    assert sorted(chain(*batches)) == [(row, 0) for row in range(rows)]
    assert sum(map(len, samplers)) == len(batches)


def test_validation_takes_captions_from_short_to_long() -> None:
    lengths = np.array([9, 3, 7, 3, 5])
    assert pairs_of(InOrder(5, 2, lengths=lengths)) == [[(1, 0), (3, 0)], [(4, 0), (2, 0)], [(0, 0)]]
