"""Locks: a process that only looks at another's lock does not stop it, and one that holds it does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from filelock import FileLock

from clip_distill.store import write
from clip_distill.store.manifest import StoreError
from clip_distill.store.write import only_writer


def test_a_lock_that_is_only_looked_at_stops_nobody(tmp_path: Path) -> None:
    with only_writer(tmp_path, 0, 1):
        pass  # leaves its file, at which all processes of a later run look
    left = FileLock(tmp_path / ".lock-0-of-1", thread_local=False)
    left.acquire()  # as another process of the same run does, for a moment
    timer = threading.Timer(0.2, left.release)
    timer.start()
    with only_writer(tmp_path, 1, 3):
        assert not left.is_locked
    timer.join()


def test_a_run_of_another_number_of_processes_stops_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "GLANCE", 0.2)
    with (
        only_writer(tmp_path, 0, 1),
        pytest.raises(StoreError, match="another process is writing"),
        only_writer(tmp_path, 1, 3),
    ):
        pass
