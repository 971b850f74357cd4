"""The planner's arithmetic against values worked out by hand, and its watch over memory and processes."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from clip_distill.corpus.layout import Split
from clip_distill.planning import estimate
from clip_distill.planning.estimate import Rate
from clip_distill.planning.memory import largest_that_fits
from clip_distill.planning.report import duration, size, steps_per_epoch
from clip_distill.planning.stand_in import RandomStore, random_validation
from clip_distill.planning.timing import timed, timed_steps
from clip_distill.store.manifest import Manifest
from clip_distill.system.allocator import forget_peak
from clip_distill.system.processes import PeakMemory, available_bytes, in_own_process, workers_bytes
from clip_distill.tokens.ragged import Ragged

MIB = 2**20


def manifest(tower: str = "image", views: int = 1, dtype: str = "float16", dim: int = 512) -> Manifest:
    tokenizer = {"source": "clip", "context_length": 77, "vocab_size": 49408}
    teacher = {"name": "t", "weights_sha256": "0" * 64, "embed_dim": dim, "preprocess": {}, "tokenizer": tokenizer}
    return Manifest(tower, "train", teacher, views, "none", 0, dtype, "fp32")


def test_a_rate_extrapolates_in_proportion() -> None:
    rate = Rate(items=50, seconds=2.0)
    assert rate.per_second == 25
    assert rate.seconds_for(1_000_000) == 40_000


def test_a_sample_is_spread_over_all_rows_and_so_is_its_first_half() -> None:
    rows = estimate.sample_rows(1_000, 100)
    assert sorted(rows) == list(range(0, 1_000, 10))
    assert 350 < rows[:50].mean() < 650
    assert sorted(estimate.sample_rows(3, 7)[:3]) == [0, 1, 2]
    assert len(estimate.sample_rows(3, 7)) == 7


@pytest.mark.parametrize(
    ("room", "each", "most", "expected"),
    [(1000, 100, 64, 10), (1000, 1, 64, 64), (50, 100, 64, 0), (1000, 0, 64, 64), (-5, 100, 64, 0)],
)
def test_the_largest_batch_is_the_room_over_a_samples_bytes(room: float, each: float, most: int, expected: int) -> None:
    assert estimate.largest_batch(room, each, most) == expected


@pytest.mark.parametrize(
    ("limit", "start", "most", "expected"),
    [(100, 16, 1000, 64), (100, 256, 1000, 64), (5000, 16, 1000, 1000), (0, 16, 1000, 0), (1, 16, 1000, 1)],
)
def test_a_batch_grows_until_it_no_longer_fits(limit: int, start: int, most: int, expected: int) -> None:
    assert estimate.grow(lambda size: size <= limit, start, most) == expected


def test_disk_of_embeddings_and_tokens_is_exact() -> None:
    images = estimate.table_bytes(manifest(views=3), rows=10_000, shard_rows=8192, id_bytes=2.5)
    assert images["embeddings"] == 10_000 * 3 * 512 * 2 + 2 * 3 * 128  # two shards, three files with a header each
    assert images["tokens"] == 0
    assert images["ids"] == 25_000
    texts = estimate.table_bytes(manifest("text", dtype="float32"), 100, 8192, 30.0, tokens=1300, token_bytes=2)
    assert texts["embeddings"] == 100 * 512 * 4 + 128
    assert texts["tokens"] == 1300 * 2 + 128 + 101 * 8 + 128


def test_a_shards_buffers_are_two_float32_copies_of_it_and_two_of_one_view_as_stored() -> None:
    assert estimate.shard_buffer_bytes(manifest(views=5), rows=8192) == 8192 * 512 * (5 * 8 + 2 * 2)


def test_a_run_leaves_five_copies_of_its_weights_and_two_of_their_average() -> None:
    assert estimate.run_bytes(1_000_000, 1_000_000, average=False) == 20_000_000
    assert estimate.run_bytes(1_000_000, 250_000, average=True) == 22_000_000


def test_a_runs_time_is_its_steps_and_its_validations() -> None:
    step, validation = Rate(10, 5.0), Rate(100, 1.0)  # half a second a step, a hundred rows a second
    fixed = {"steps": 40, "val_rows": 500, "epochs": 6, "max_steps": -1, "every": 2}
    found = estimate.fit_seconds(step, validation, 3.0, **fixed)
    assert found == estimate.FitSeconds(epoch=20.0, validation=8.0, total=6 * 20 + 3 * 8)
    # 100 steps are two epochs and a half
    assert estimate.fit_seconds(step, validation, 3.0, **fixed | {"max_steps": 100}).total == 50 + 8
    assert estimate.fit_seconds(step, validation, 3.0, **fixed | {"epochs": -1, "max_steps": 100}).total == 50 + 8
    with pytest.raises(ValueError, match="never end"):
        estimate.fit_seconds(step, validation, 3.0, **fixed | {"epochs": -1})


def test_limited_epochs_have_fewer_steps() -> None:
    assert [steps_per_epoch(80, limit) for limit in (None, 1.0, 0.5, 20, 200)] == [80, 80, 40, 20, 80]


def test_people_read_times_and_sizes_in_units() -> None:
    assert [duration(s) for s in (1.23, 90, 7200)] == ["1.2 s", "1.5 min", "2.0 h"]
    assert [size(b) for b in (10, 1536, 3 * 2**30, 2**51)] == ["10.0 B", "1.5 KiB", "3.0 GiB", "2,048.0 TiB"]


def test_steps_are_timed_after_those_that_warm_up() -> None:
    def steps() -> Iterator[int]:
        for pause in [0.3, 0.02, 0.02, 0.02, 0.02, 5.0]:
            time.sleep(pause)
            yield 10

    rate = timed_steps(steps(), warm=1, seconds=0.05)
    assert rate.items in (20, 30, 40)
    assert rate.items / 10 * 0.02 <= rate.seconds < 1
    assert timed(lambda: time.sleep(0.01), items=4, seconds=0.05).per_second < 400


def fresh(size: int) -> np.ndarray:  # type: ignore[type-arg]
    """Bytes that are this process's only from now on: the allocator may have kept some of what was freed earlier."""
    block = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    block[:] = 1
    return block


def test_a_peak_is_seen_after_the_memory_is_given_back() -> None:
    forget_peak()  # of the tests before
    others = workers_bytes(psutil.Process())  # that they have left
    with PeakMemory(interval=0.005) as memory:
        block = fresh(64 * MIB)
        time.sleep(0.3)
        del block
        time.sleep(0.1)
    assert 50 * MIB < memory.peak - memory.start - others < 200 * MIB


def test_the_cpus_largest_batch_follows_from_what_a_sample_takes() -> None:
    kept = []

    def run(size: int) -> None:
        kept.append(fresh(size * 4 * MIB))
        time.sleep(0.2)
        kept.clear()

    found = largest_that_fits(run, torch.device("cpu"), batch_size=16, most=10**9)
    assert found == pytest.approx(available_bytes() / (4 * MIB), rel=0.5)


def test_a_process_that_is_killed_is_told_in_words_and_an_error_in_it_is_raised() -> None:
    with pytest.raises(ValueError, match=r"was killed, most likely for want of memory .* GiB"):
        in_own_process(os._exit, 9)
    with pytest.raises(ValueError, match="invalid literal"):
        in_own_process(int, "none")
    assert in_own_process(os.getenv, "TQDM_DISABLE") == "1"
    assert os.getenv("TQDM_DISABLE") is None


def test_a_measuring_process_starts_its_workers_as_a_verb_does() -> None:
    assert in_own_process(multiprocessing.get_start_method) == multiprocessing.get_start_method()


def test_the_random_store_finds_the_real_ids_and_gives_any_row() -> None:
    ids = [f"image/{number}.jpg" for number in range(20_000)]
    tokens = Ragged(np.arange(40_000, dtype=np.uint16), np.arange(20_001) * 2)
    store = RandomStore(4, pa.array(ids, pa.large_string()), tokens)
    assert store.find([ids[19_999], "nowhere", ids[3]]).tolist() == [19_999, -1, 3]
    assert store.embeddings(np.array([5, 7])).shape == (2, 4)
    assert store.photos(np.array([19_999, 0])).column("digest").to_pylist() == [None, None]
    assert store.tokens.take(np.array([1])).flat.tolist() == [2, 3]
    assert len(store.ids) == 20_000


def test_the_random_validation_has_the_pairs_of_the_real_one() -> None:
    images = pa.table({"id": ["a", "b", "c"]})
    captions = pa.table({"text": ["one", "two", "one", "lost"], "image_id": ["a", "c", "b", None]})
    validation = random_validation("text", Split(images, captions, "", ""), dim=4, held=0)
    assert (validation.own.shape, validation.other.shape) == ((2, 4), (3, 4))
    assert validation.caption_row.tolist() == [0, 1, 0]
    assert validation.image_row.tolist() == [0, 2, 1]
    assert validation.metrics(torch.randn(2, 4)).keys() >= {"mean_recall", "cosine"}
    nameless = pa.table({"text": ["lost"], "image_id": pa.array([None], pa.string())})
    with pytest.raises(ValueError, match="none that name one"):
        random_validation("text", Split(images, nameless, "", "looked there"), dim=4, held=0)
