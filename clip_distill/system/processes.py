"""Processes: how much memory they take and how much there is, and running a function in one of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, get_start_method, parent_process, set_start_method
from pathlib import Path
from typing import Any, TypeVar

import psutil

from clip_distill.system import talk
from clip_distill.system.allocator import keep_memory, most_resident_bytes
from clip_distill.system.errors import InvalidValue

T = TypeVar("T")
CGROUP = Path("/sys/fs/cgroup")
REST = 10  # times as long as it looks does the watch sleep, so that looking costs little


def available_bytes() -> int:
    """Memory that can still be taken: the machine's, or what a container's limit leaves of it."""
    free = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(most) - int(used.read_text(encoding="ascii")))
    return free


def workers_bytes(process: psutil.Process) -> int:
    """Memory of the processes below one that they don't share with it."""
    total = 0
    for worker in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            total += worker.memory_full_info().uss
    return total


class PeakMemory:
    """Watches a process and its workers for as long as the `with` block runs.

    Args:
        process: Which one; None is this one.
        interval: Seconds between two looks. A shorter peak of the workers may be missed, on Linux none of the process.
        alone: Take what this process has at each look: without workers, and without what it had before.

    Attributes:
        start: Bytes of the process when the block began.
        peak: The most bytes of the process, and the most of its workers: at least what both had at one time.
    """

    def __init__(self, process: psutil.Process | None = None, interval: float = 0.05, alone: bool = False) -> None:
        self.process, self.interval, self.alone = process or psutil.Process(), interval, alone
        self.start = self._most = int(self.process.memory_info().rss)
        self._most_of_workers = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak(self) -> int:
        return self._most + self._most_of_workers

    def _look(self) -> None:
        if self.alone:
            self._most = max(self._most, int(self.process.memory_info().rss))
        else:
            self._most = max(self._most, most_resident_bytes(self.process))
            self._most_of_workers = max(self._most_of_workers, workers_bytes(self.process))

    def _watch(self) -> None:
        rest = 0.0
        while not self._ended.wait(max(self.interval, rest)):
            began = time.perf_counter()
            with contextlib.suppress(psutil.Error, FileNotFoundError, ProcessLookupError):  # it has ended
                self._look()
            rest = REST * (time.perf_counter() - began)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(psutil.Error, FileNotFoundError, ProcessLookupError):
            self._look()


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for the processes that start within the `with` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module's function in a fresh interpreter, as a verb of its own would run; its errors are raised here.

    Raises:
        ValueError: The process was killed.
    """
    # a bar over a sample would look like the real thing's; tqdm reads this as it is imported, so before the process is
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, environment("TQDM_DISABLE", "1"):
        try:
            return pool.submit(_as_a_verb, get_start_method(), talk.loudness(), function, *arguments).result()
        except BrokenProcessPool as error:
            raise InvalidValue(
                f"the process that measured ({function.__name__}) was killed, most likely for want of memory "
                f"({available_bytes() / 2**30:.1f} GiB are free now). Try smaller --batch_size and --loader.batch_size"
            ) from error


def _as_a_verb(start_method: str, loudness: int | None, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function where memory is kept and workers start as in a verb: a spawned process would spawn its own."""
    set_start_method(start_method, force=True)
    keep_memory()
    if loudness is not None:
        talk.to_console(loudness)
    return function(*arguments)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, killed perhaps: by itself it would wait for ever."""
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
