"""`--engine ray` on a cluster of two workers here: the same store, the same index, and a killed worker is made good."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clip_distill as cd
from clip_distill.photosearch.index import Index
from clip_distill.system.ray_tasks import cluster, each_as_ended

ray = pytest.importorskip("ray")
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    environment = {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
        object_store_memory=100 * 1024 * 1024,
    )
    yield
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def die_once(marks: str, number: int) -> int:
    """A task whose worker is killed the first time."""
    mark = Path(marks) / str(number)
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_a_task_whose_worker_was_killed_runs_again(two_workers: None, tmp_path: Path) -> None:
    with cluster(None) as at_once:
        assert at_once == 2
        assert sorted(each_as_ended(die_once, [(str(tmp_path), number) for number in range(4)])) == [0, 1, 4, 9]
    assert (tmp_path / "1").exists() and ray.is_initialized(), "a cluster that was there stays"


def test_the_store_is_that_of_one_process(
    two_workers: None, tiny_data: Path, tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"data": tiny_data, "teacher": tiny_teacher, "split": "train", "shard_rows": 8}
    asked |= {"workers": 0, "device": "cpu"}
    cd.embed(**asked, store=tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    cd.embed(**asked, store="two", engine="ray")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("dim", [32, 8])
def test_the_index_is_that_of_one_process(
    two_workers: None, tiny_data: Path, tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    (tmp_path / "photos").mkdir()
    for path in (tiny_data / "image").iterdir():
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos/broken.jpg").write_bytes(b"no photo")
    monkeypatch.setattr("clip_distill.photosearch.spread.SHARD", 10 if dim == 32 else 4)
    monkeypatch.setattr("clip_distill.photosearch.narrow.SAMPLE", 18)
    found = []
    for engine in ("local", "ray"):
        asked: dict[str, Any] = {
            "teacher": tiny_teacher,
            "index": tmp_path / engine,
            "engine": engine,
            "device": "cpu",
            "dim": dim,
        }
        cd.search([tmp_path / "photos"], **asked, index_only=True)
        made_by = {"student": cd.load(tiny_teacher).encoder("image").teacher["weights_sha256"], "dim": dim}
        found.append(Index(tmp_path / engine, made_by | {"upright": False}))
    local, spread = (index.contents() for index in found)
    order = [spread.paths.index(path) for path in local.paths]
    assert len(local.paths) == 24 and sorted(order) == list(range(24))
    np.testing.assert_allclose(spread.matrix[order], local.matrix, atol=2e-3)
    assert found[1].unread() == [(str(tmp_path / "photos/broken.jpg"), "not an image")]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(cd.MissingPackage, match=r"pip install 'clip-distill\[ray\]'"), cluster(None):
        pass
