"""Workers that can't hand a batch over, die, or stay at one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_distill.system import at_work, feed
from clip_distill.system.errors import InvalidValue, WorkerFailed
from clip_distill.system.feed import Feed


class Numbers(Dataset[tuple[Tensor, int]]):
    """64 rows; an item is a row of 100,000 of its own number, or what `odd` does at row 20."""

    def __init__(self, odd: str = "", fifo: Path | None = None) -> None:
        self.odd, self.fifo = odd, fifo

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        at_work.at(f"photos/{row}.jpg")
        if self.odd == "slow":
            time.sleep(0.5)
        if row == 20 and self.odd == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if row == 20 and self.odd == "leave":
            os._exit(3)
        if row == 20 and self.odd == "refuse":
            raise InvalidValue("expected another photo,\nfound this one")
        if row == 20 and self.fifo is not None:
            self.fifo.read_bytes()
        return torch.full((100_000,), row, dtype=torch.int64), row


def rows_of(dataset: Numbers, workers: int = 2, **options: Any) -> list[int]:
    rows: list[int] = []
    for block, numbers in Feed(dataset, num_workers=workers, batch_size=4, **options):
        assert (block == numbers[:, None]).all()
        rows += numbers.tolist()
    return rows


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("spare", [0, 2**60])
def test_batches_come_whole_and_in_order_with_and_without_room_to_share(
    workers: int, spare: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(feed, "SPARE_BYTES", spare)
    feed._say_once.cache_clear()
    assert rows_of(Numbers(), workers) == list(range(64)) == rows_of(Numbers(), workers)
    assert capsys.readouterr().out.count("has no room") == (1 if workers and spare else 0)


@pytest.mark.parametrize("megabytes", [1, 4, 64])
def test_a_containers_shared_memory_is_enough(megabytes: int) -> None:
    """Batches of 16 MB, of which eight are under way."""
    code = (
        "import torch, os; from clip_distill.system.feed import Feed\n"
        "class Rows(torch.utils.data.Dataset):\n"
        "    __len__ = lambda self: 40\n"
        "    __getitem__ = lambda self, row: torch.full((2**24,), row, dtype=torch.uint8)\n"
        "loader = Feed(Rows(), num_workers=2, batch_size=None, persistent_workers=True)\n"
        "for epoch in range(2): print([int(batch[-1]) for batch in loader] == [*range(40)])\n"
    )
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
    inside = ["unshare", "-m", "bash", "-c", mount, "bash"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    ended = subprocess.run(
        [*inside, sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.split() == ["True", "True"], ended.stderr


@pytest.mark.parametrize("odd", ["die", "leave"])
def test_a_worker_that_dies_is_named_with_its_file(odd: str) -> None:
    with pytest.raises(WorkerFailed, match=r"a worker process died at .*photos/20\.jpg,"):
        rows_of(Numbers(odd))


def test_a_worker_that_stays_at_a_file_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(feed.TIMEOUT, "2")
    os.mkfifo(tmp_path / "fifo")  # nobody writes to it, as on a network folder that is gone
    with pytest.raises(WorkerFailed, match=r"no worker went on for 2 s; at work on: .*photos/20\.jpg"):
        rows_of(Numbers(fifo=tmp_path / "fifo"))


def test_a_slow_worker_is_waited_for_while_it_comes_to_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(feed.TIMEOUT, "1.5")  # a batch takes two seconds
    batches = iter(Feed(Numbers("slow"), num_workers=1, batch_size=4))
    assert next(batches)[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_known_error_comes_as_it_was_raised(workers: int) -> None:
    with pytest.raises(InvalidValue) as raised:
        rows_of(Numbers("refuse"), workers)
    assert str(raised.value) == "expected another photo,\nfound this one"
