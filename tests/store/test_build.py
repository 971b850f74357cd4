"""Writing a table: the same bytes after any interruption, by any number of processes; and growing it."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_distill.store.build import build_table, process_rank
from clip_distill.store.manifest import MANIFEST, StoreError
from clip_distill.store.table import Store

Start = Callable[..., Any]  # of conftest.Child
Contents = Callable[[Path], dict[str, bytes]]
WaitFor = Callable[[Callable[[], object]], None]


@pytest.mark.parametrize("shard_rows", [1, 4, 7, 40])
def test_a_killed_build_ends_with_the_same_bytes(
    shard_rows: int, synthetic: SimpleNamespace, tmp_path: Path, start: Start, contents: Contents, wait_for: WaitFor
) -> None:
    synthetic.build(tmp_path / "whole", 40, shard_rows)
    folder = tmp_path / "killed"
    chance = random.Random(shard_rows)
    for _ in range(2):
        kill_at_random(start(folder, 40, shard_rows, pause=0.03), folder, chance, wait_for)
    seen: list[str] = []
    store = synthetic.build(folder, 40, shard_rows, seen=seen)
    assert len(seen) < 40 or shard_rows == 40  # what was there before is not done again
    assert len(store) == 40
    assert contents(folder) == contents(tmp_path / "whole")


def kill_at_random(child: Any, folder: Path, chance: random.Random, wait_for: WaitFor) -> None:
    """Kill a build up to a tenth of a second after it has written a shard, unless it has ended."""
    before = len(list(folder.glob("shard-*")))
    wait_for(lambda: len(list(folder.glob("shard-*"))) > before or not child.process.is_alive())
    child.kill(after=chance.random() * 0.1)


def test_what_a_killed_process_left_aside_is_cleared(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / ".shard-00000-rank0.tmp").mkdir()
    (tmp_path / ".shard-00000-rank0.tmp/rows.parquet").write_bytes(b"half")
    synthetic.build(tmp_path, 3, 4)
    assert not list(tmp_path.glob(".shard*"))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_writes_the_same_bytes_even_if_one_is_killed(
    world: int, synthetic: SimpleNamespace, tmp_path: Path, start: Start, contents: Contents, wait_for: WaitFor
) -> None:
    synthetic.build(tmp_path / "alone", 30, 4, 2)
    folder = tmp_path / "together"
    last = world - 1
    children = [start(folder, 30, 4, 2, pause=0.1, rank=rank, world=world) for rank in range(world)]
    wait_for((folder / f"shard-{last:05d}").is_dir)
    children[last].kill()
    assert [child.answer() for child in children] == ["unfinished"] * last + [""]
    assert not (folder / MANIFEST).exists()
    assert start(folder, 30, 4, 2, rank=last, world=world).answer() == "30 rows"
    assert contents(folder) == contents(tmp_path / "alone")


def test_a_process_on_its_own_is_not_held_up_by_others_that_left(
    synthetic: SimpleNamespace, tmp_path: Path, start: Start, contents: Contents
) -> None:
    assert start(tmp_path / "a", 30, 4, rank=1, world=3).answer() == "unfinished"
    assert len(synthetic.build(tmp_path / "a", 30, 4)) == 30
    synthetic.build(tmp_path / "b", 30, 4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("second", [(0, 1), (1, 2)], ids=["alone", "one of two"])
def test_a_second_program_on_the_same_table_stops_and_says_so(
    second: tuple[int, int], tmp_path: Path, start: Start, wait_for: WaitFor
) -> None:
    first = start(tmp_path, 30, 4, pause=1)
    wait_for((tmp_path / "plan.json").is_file)
    rank, world = second
    answer = start(tmp_path, 30, 4, rank=rank, world=world).answer()
    first.kill()
    assert "another process is writing this store" in answer


def test_torchrun_and_slurm_say_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert process_rank() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert process_rank() == (0, 1)  # sbatch's own script is no task of srun
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert process_rank() == (3, 8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process_rank() == (1, 2)


def test_new_rows_are_added_without_touching_the_others(
    synthetic: SimpleNamespace, tmp_path: Path, contents: Contents
) -> None:
    bad = ("image/00002.jpg", "image/00011.jpg")
    synthetic.build(tmp_path, 10, 4, bad=bad)
    before = contents(tmp_path)
    seen: list[str] = []
    store = synthetic.build(tmp_path, 15, 4, bad=bad, seen=seen)
    assert seen == synthetic.items(15).column(0).to_pylist()[10:]  # nor is the bad photo tried again
    assert (len(store), len(Store(tmp_path)), store.manifest.skipped) == (13, 13, {"truncated": 2})
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before if name.startswith("shard-"))
    assert store.find(["image/00002.jpg", "image/00014.jpg"]).tolist() == [-1, 12]
    assert synthetic.build(tmp_path, 15, 4, bad=bad, seen=(again := [])) is not None and again == []
    assert contents(tmp_path) == after


@pytest.mark.parametrize("begun", [False, True], ids=["new", "growing"])
def test_data_that_changed_since_a_run_was_killed_are_an_error_that_says_what_differs(
    begun: bool, synthetic: SimpleNamespace, tmp_path: Path, start: Start, wait_for: WaitFor
) -> None:
    if begun:
        synthetic.build(tmp_path, 8, 4)
    child = start(tmp_path, 30, 4, pause=0.3)
    wait_for((tmp_path / f"shard-{3 if begun else 1:05d}").is_dir)
    child.kill()
    rows = (22, 21) if begun else (30, 29)
    with pytest.raises(
        StoreError, match=f"unfinished.*(.|\n)*items: expected {rows[1]}, found {rows[0]}(.|\n)*Give the data"
    ):
        synthetic.build(tmp_path, 29, 4)
    with pytest.raises(StoreError, match="shard_rows: expected 5, found 4"):
        synthetic.build(tmp_path, 30, 5)
    assert len(synthetic.build(tmp_path, 30, 4)) == 30


def test_another_teacher_is_an_error_on_a_finished_store(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    synthetic.build(tmp_path, 5, 4)
    other = synthetic.manifest(teacher=synthetic.manifest().teacher | {"weights_sha256": "f" * 64})
    with pytest.raises(StoreError, match="teacher.weights_sha256: expected 'ffff(.|\n)*Name another --store"):
        build_table(tmp_path, other, synthetic.items(5), synthetic.embed_with(), 4)


@pytest.mark.parametrize("world", [1, 2])
def test_views_are_added_to_the_rows_that_are_there_through_a_kill(
    world: int, synthetic: SimpleNamespace, tmp_path: Path, start: Start, contents: Contents, wait_for: WaitFor
) -> None:
    synthetic.build(tmp_path / "at-once", 20, 4, 5)
    folder = tmp_path / "grown"
    synthetic.build(folder, 20, 4, 3)
    before = contents(folder)
    children = [start(folder, 20, 4, 5, pause=0.15, rank=rank, world=world) for rank in range(world)]
    wait_for((folder / "shard-00000/view-004.npy").is_file)
    for child in children:
        child.kill()
    assert Store(folder).manifest.views == 3  # readers see the old table meanwhile
    assert Store(folder).embeddings(np.arange(20), 2).shape == (20, 8)
    answers = [start(folder, 20, 4, 5, rank=rank, world=world).answer() for rank in range(world)]
    assert answers == ["unfinished"] * (world - 1) + ["20 rows"]
    after, at_once = contents(folder), contents(tmp_path / "at-once")
    assert all(after[name] == before[name] for name in before if "view-" in name or "rows" in name)
    assert {n: c for n, c in after.items() if not n.startswith("plan")} == {
        n: c for n, c in at_once.items() if not n.startswith("plan")
    }
    grown_again = synthetic.build(folder, 20, 4, 6)
    np.testing.assert_array_equal(
        grown_again.embeddings(np.arange(20), 5)[7], synthetic.embedding("image/00007.jpg", 5).astype(np.float16)
    )


def test_views_and_rows_grow_together(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    bad = ("image/00001.jpg",)
    synthetic.build(tmp_path, 6, 4, bad=bad)
    store = synthetic.build(tmp_path, 9, 4, 3, bad=bad)
    assert (len(store), store.manifest.views, store.manifest.augment) == (8, 3, "crop_flip")
    for view in range(3):
        expected = [synthetic.embedding(id, view).astype(np.float16) for id in store.ids.to_pylist()]
        np.testing.assert_array_equal(store.all_embeddings(view), np.stack(expected))


def test_fewer_views_than_stored_change_nothing_but_new_rows_get_all(
    synthetic: SimpleNamespace, tmp_path: Path
) -> None:
    synthetic.build(tmp_path, 6, 4, 3)
    assert synthetic.build(tmp_path, 6, 4, 1).manifest.views == 3
    store = synthetic.build(tmp_path, 8, 4, 2)
    assert (len(store), store.manifest.views) == (8, 3)
    np.testing.assert_array_equal(
        store.embeddings(np.array([7]), 2)[0], synthetic.embedding("image/00007.jpg", 2).astype(np.float16)
    )


def test_views_of_another_seed_or_augmentation_are_not_mixed(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    synthetic.build(tmp_path, 6, 4, 3)
    other = synthetic.manifest(views=5, augment="randaugment", seed=1)
    with pytest.raises(
        StoreError, match="augment: expected 'randaugment', found 'crop_flip'(.|\n)*seed: expected 1, found 0"
    ):
        build_table(tmp_path, other, synthetic.items(6), synthetic.embed_with(), 4)


def test_views_of_a_photo_that_is_gone_are_an_error(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    synthetic.build(tmp_path, 6, 4)
    with pytest.raises(StoreError, match="can't be, the first image/00002.jpg .truncated"):
        synthetic.build(tmp_path, 6, 4, 2, bad=("image/00002.jpg",))
    with pytest.raises(StoreError, match="found 1 gone from the data, for instance 'image/00005.jpg'"):
        synthetic.build(tmp_path, 5, 4, 2)
    assert Store(tmp_path).manifest.views == 1
    assert synthetic.build(tmp_path, 6, 4, 2).manifest.views == 2


def test_a_grown_table_without_its_manifest_is_not_taken_for_a_new_one(
    synthetic: SimpleNamespace, tmp_path: Path
) -> None:
    synthetic.build(tmp_path, 10, 4)
    synthetic.build(tmp_path, 15, 4)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(StoreError, match="shard-00002: expected a shard of 4 items, found one of 2"):
        synthetic.build(tmp_path, 15, 4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_that_do_not_fit_are_an_error(dtype: str, synthetic: SimpleNamespace, tmp_path: Path) -> None:
    made_by = synthetic.manifest(dtype=dtype)
    plain = synthetic.embed_with()(made_by)

    def huge(items: Any, parts: Any, numbers: range) -> Any:
        for part, shard in plain(items, parts, numbers):
            shard.views[0][0, 0] = 1e5
            yield part, shard

    if dtype == "float32":
        assert build_table(tmp_path, made_by, synthetic.items(3), lambda _: huge, 4) is not None
        return
    with pytest.raises(StoreError, match="float16 can't hold .largest 1e.05.*--dtype float32"):
        build_table(tmp_path, made_by, synthetic.items(3), lambda _: huge, 4)
    assert not list(tmp_path.glob("*shard*"))


def test_a_shard_may_be_empty(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    ids = synthetic.items(6).column(0).to_pylist()
    store = synthetic.build(tmp_path, 6, 2, 2, bad=tuple(ids[2:4]))
    assert [shard["rows"] for shard in store.manifest.shards] == [2, 0, 2]
    assert store.all_embeddings(1).shape == store.embeddings(np.arange(4), 1).shape == (4, 8)
    assert synthetic.build(tmp_path / "none", 2, 2, bad=tuple(ids)).all_embeddings().shape == (0, 8)


def test_a_limit_on_file_size_ends_in_a_clear_error_and_a_store_to_go_on_with(
    synthetic: SimpleNamespace, tmp_path: Path, contents: Contents
) -> None:
    synthetic.build(tmp_path / "whole", 1500, 600)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))  # a view of 600 rows takes 9,728 bytes
    try:
        with pytest.raises(
            StoreError, match="limit on file size is full(.|\n)*make room and run the same command again"
        ):
            synthetic.build(tmp_path / "full", 1500, 600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "full").glob("*shard*"))
    assert len(synthetic.build(tmp_path / "full", 1500, 600)) == 1500
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_full_disk_ends_in_a_clear_error_and_a_store_to_go_on_with(
    synthetic: SimpleNamespace, tmp_path: Path, contents: Contents
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        (disk / "other").write_bytes(bytes(150_000))
        with pytest.raises(StoreError, match="the disk, a quota .* is full .*No space left.*MiB free(.|\n)*make room"):
            synthetic.build(disk / "table", 4000, 500)
        left = [path.name for path in (disk / "table").glob("*shard*")]
        assert left and not any(name.startswith(".") for name in left)
        (disk / "other").unlink()
        store = synthetic.build(disk / "table", 4000, 500)
        assert len(store) == 4000
        synthetic.build(tmp_path / "whole", 4000, 500)
        assert contents(disk / "table") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_can_not_be_written_is_said(synthetic: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="could not write"):
        synthetic.build(tmp_path / "file", 3, 4)
