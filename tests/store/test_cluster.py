"""`clip-distill embed` as torchrun and SLURM start it: the real command, one of its processes killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil
import pytest
import torch

from clip_distill.cli import main as cli
from clip_distill.store.manifest import MANIFEST

Contents = Callable[[Path], dict[str, bytes]]
WaitFor = Callable[[Callable[[], object]], None]
OPTIONS = ["--split", "train", "--shard_rows", "4", "--views", "8", "--augment", "crop_flip"]
OPTIONS += ["--workers", "0", "--device", "cpu"]
SHARDS = 18
NAMES = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID", "OMP_NUM_THREADS")


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_data` with 72 photos, each of its own under three names, so that there is time to kill a process."""
    folder = tmp_path_factory.mktemp("data") / "image"
    folder.mkdir()
    shutil.copytree(tiny_data / "CC", folder.parent / "CC")
    for photo in (tiny_data / "image").iterdir():
        for copy in "abc":
            shutil.copy(photo, folder / f"{copy}-{photo.name}")
    return folder.parent


@pytest.fixture(scope="module")
def alone(data: Path, tiny_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process with one thread; sums of another number of threads may round otherwise."""
    store = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cli.main(["embed", "--data", str(data), "--teacher", tiny_teacher, "--store", str(store), *OPTIONS])
    finally:
        torch.set_num_threads(threads)
    return store


def torchrun(data: Path, teacher: str, store: Path) -> subprocess.Popen[str]:
    """The real command below torchrun, in processes of their own."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, *launcher, "--monitor-interval", "0.1", "-m", "clip_distill", "embed"]
    command += ["--data", str(data), "--teacher", teacher, "--store", str(store), *OPTIONS]
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_task(number: int, data: Path, teacher: str, store: Path, said: Path) -> None:
    """The command as task `number` of two, as SLURM's srun starts it; what it prints goes to the file `said`."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), sys.stdout.fileno())
    os.environ |= {"SLURM_PROCID": str(number), "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    torch.set_num_threads(1)
    cli.main(["embed", "--data", str(data), "--teacher", teacher, "--store", str(store), *OPTIONS])
    sys.stdout.flush()


def shards_of(table: Path, rank: int) -> set[int]:
    """Which shards of one of two processes are there."""
    there = {int(path.name.removeprefix("shard-")) for path in table.glob("shard-*")}
    return {number for number in there if number % 2 == rank}


def process_of(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank below torchrun."""
    children = psutil.Process(launcher.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def test_torchrun_starts_a_killed_process_again_and_the_store_is_that_of_one_process(
    data: Path, tiny_teacher: str, alone: Path, tmp_path: Path, wait_for: WaitFor, contents: Contents
) -> None:
    table = tmp_path / "image-train"
    launched = torchrun(data, tiny_teacher, tmp_path)
    wait_for(lambda: shards_of(table, 1) or launched.poll() is not None)
    process_of(launched, 1).kill()
    written = len(shards_of(table, 1))
    assert not (table / MANIFEST).exists()
    _, errors = launched.communicate()
    assert launched.returncode == 0, errors
    assert 1 <= written < SHARDS // 2
    assert "exitcode: -9" in errors, errors
    assert contents(tmp_path) == contents(alone)


def test_tasks_of_slurm_share_the_work_and_a_killed_one_is_started_again(
    forkserver: ForkServerContext,
    data: Path,
    tiny_teacher: str,
    alone: Path,
    tmp_path: Path,
    wait_for: WaitFor,
    contents: Contents,
) -> None:
    store, said = tmp_path / "store", tmp_path / "said"
    table = store / "image-train"

    def task(number: int) -> ForkServerProcess:
        process = forkserver.Process(target=run_task, args=(number, data, tiny_teacher, store, said), daemon=True)
        process.start()
        return process

    second = task(1)
    wait_for(lambda: shards_of(table, 1) or not second.is_alive())
    second.kill()
    second.join()
    assert second.exitcode == -signal.SIGKILL
    first = task(0)
    first.join()
    assert first.exitcode == 0, said.read_text()
    assert "process 0 of 2 has written its shards; the last one to end finishes the table" in said.read_text()
    assert shards_of(table, 0) == set(range(0, SHARDS, 2))
    assert 1 <= len(shards_of(table, 1)) < SHARDS // 2 and not (table / MANIFEST).exists()
    again = task(1)
    again.join()
    assert again.exitcode == 0, said.read_text()
    assert "72 rows × 8 × 32" in said.read_text()
    assert contents(store) == contents(alone)
