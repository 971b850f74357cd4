"""Reading a table: rows, views, ids, fingerprints, and what is said of files that are not what they should be."""

from __future__ import annotations

import gc
import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from clip_distill.store import table
from clip_distill.store.build import build_table
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError, differences, require_same, teacher_fingerprint
from clip_distill.store.table import Store


@pytest.fixture
def store(synthetic: SimpleNamespace, tmp_path: Path) -> Store:
    """50 rows in shards of 8, two views; row 3 can't be read, nor can the whole of the third shard."""
    bad = tuple(synthetic.items(50).column(0).to_pylist()[i] for i in (3, *range(16, 24)))
    return synthetic.build(tmp_path / "image-train", 50, 8, 2, bad=bad)


def test_rows_are_read_in_any_order_with_repeats_each_at_its_view(synthetic: SimpleNamespace, store: Store) -> None:
    assert len(store) == len(store.ids) == 41
    rows = np.random.default_rng(0).integers(len(store), size=200)
    views = rows % 2
    expected = [
        synthetic.embedding(store.ids[int(row)].as_py(), view).astype(np.float16)
        for row, view in zip(rows, views, strict=True)
    ]
    np.testing.assert_array_equal(store.embeddings(rows, views), np.stack(expected))
    np.testing.assert_array_equal(store.all_embeddings(1), store.embeddings(np.arange(41), 1))
    assert store.embeddings(np.empty(0, np.int64)).shape == (0, 8)


def test_ids_are_found_and_others_are_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = store.ids.to_pylist()
    asked = [ids[40], "image/nowhere.jpg", ids[0], ids[40], "image/00003.jpg"]
    whole = store.find(asked)
    assert whole.tolist() == [40, -1, 0, 40, -1]
    monkeypatch.setattr(table, "FIND_ROWS", 10)  # the store's ids in several parts
    assert store.find(asked).tolist() == whole.tolist()
    assert store.find(store.ids).tolist() == list(range(41))
    assert store.find(pa.chunked_array([store.ids[5:], store.ids[:5]])).tolist() == [*range(5, 41), *range(5)]


@pytest.mark.parametrize(("rows", "views"), [([-1], 0), ([41], 0), ([0], 2), ([0], -1)])
def test_a_row_or_view_that_is_not_there_is_an_error(store: Store, rows: list[int], views: int) -> None:
    with pytest.raises(StoreError, match="expected (rows|views) from 0 up to"):
        store.embeddings(np.array(rows), views)


def test_a_store_goes_to_another_process_without_its_files(store: Store) -> None:
    before = store.embeddings(np.arange(41))
    sent = pickle.dumps(store)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent).embeddings(np.arange(41)), before)


def test_more_shards_than_a_process_may_open(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # stores of earlier tests hold their files
    few = 2 * len(os.listdir("/dev/fd")) + 40
    rows = few // 2 + 100
    synthetic.build(tmp_path, rows, 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        store = Store(tmp_path)
        for _ in range(2):
            assert store.embeddings(np.arange(rows)).shape == (rows, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_threads_may_share_a_store(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    store = synthetic.build(tmp_path, 300, 5)
    store._open = lru_cache(3)(store._open_view)  # files are closed and opened all the time
    everything = store.all_embeddings()

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(300, size=200)
        return bool((store.embeddings(rows) == everything[rows]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def test_a_truncated_file_is_an_error(store: Store) -> None:
    path = store.folder / "shard-00001/view-000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="view-000.npy: expected .* found"):
        store.embeddings(np.arange(41))


def test_every_difference_of_two_fingerprints_is_listed(synthetic: SimpleNamespace) -> None:
    one = synthetic.manifest(views=3, augment="crop_flip")
    teacher = one.teacher | {"weights_sha256": "1" * 64, "preprocess": one.teacher["preprocess"] | {"size": 64}}
    other = synthetic.manifest(views=3, augment="randaugment", seed=7, dtype="float32", teacher=teacher)
    lines = differences(one.fingerprint(), other.fingerprint())
    assert [line.split(":")[0] for line in lines] == [
        "augment", "dtype", "seed", "teacher.preprocess.size", "teacher.weights_sha256",
    ]  # fmt: skip
    assert "seed: expected 0, found 7" in lines
    with pytest.raises(StoreError) as error:
        require_same("S", one.fingerprint(), other.fingerprint(), "Do this.")
    assert all(line in str(error.value) for line in lines)
    assert str(error.value).endswith("Do this.")


def test_a_copied_teacher_is_the_same_teacher(synthetic: SimpleNamespace) -> None:
    teacher = synthetic.manifest().teacher
    assert teacher_fingerprint(teacher | {"name": "local-dir:/elsewhere"}) == teacher_fingerprint(teacher)


def test_what_is_no_store_or_unfinished_or_renamed_is_said(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found no store"):
        Store(tmp_path)
    (tmp_path / "shard-00000").mkdir()
    with pytest.raises(StoreError, match="found an unfinished store"):
        Store(tmp_path)
    synthetic.build(tmp_path / "text-val", 3, 8)
    with pytest.raises(StoreError, match="tower: expected 'text', found 'image'(.|\n)*rename it back"):
        open_table(tmp_path, "text", "val")


def test_tokens_of_all_shards_are_joined(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    from clip_distill.tokens.ragged import Ragged

    tokens = [Ragged(np.arange(n * 2, dtype=np.uint16), np.arange(n + 1) * 2) for n in (3, 2)]
    plain = synthetic.embed_with()

    def embed_with(made_by: table.Manifest) -> object:
        def embed_parts(items: pa.Table, parts: list, numbers: range) -> object:
            for part, shard in plain(made_by)(items, parts, numbers):
                shard.tokens = tokens[part.number]
                yield part, shard

        return embed_parts

    store = build_table(tmp_path, synthetic.manifest(tower="text"), synthetic.items(5), embed_with, 3)
    assert store is not None
    assert store.tokens.flat.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert store.tokens.flat.dtype == np.uint16
    assert store.tokens.lengths.tolist() == [2] * 5
