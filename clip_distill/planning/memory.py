"""How much memory a verb takes, and how much there is; on the CPU watched from beside, on CUDA asked of torch."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from clip_distill.planning.estimate import grow, largest_batch
from clip_distill.system.allocator import give_back, keep_memory, most_resident_bytes

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
            return pool.submit(_as_a_verb, get_start_method(), function, *arguments).result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"the process that measured ({function.__name__}) was killed, most likely for want of memory "
                f"({available_bytes() / 2**30:.1f} GiB are free now). Try smaller --batch_size and --loader.batch_size"
            ) from error


def _as_a_verb(start_method: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function where memory is kept and workers start as in a verb: a spawned process would spawn its own."""
    set_start_method(start_method, force=True)
    keep_memory()
    return function(*arguments)


def largest_that_fits(run: Callable[[int], Any], device: torch.device, batch_size: int, most: int) -> int:
    """The largest batch that `run` can do on a device.

    On CUDA by trying. On the CPU, where trying would end with a killed machine, by the memory that two small batches
    take, against what is free.
    """
    if device.type == "cuda":
        return grow(lambda size: fits_on_cuda(run, size), batch_size, most)
    small, large = max(1, batch_size // 8), max(2, batch_size // 2)
    run(small)  # what is allocated once
    free, peaks = available_bytes(), []
    for size in (small, large):
        give_back()  # memory that is kept would hide what the next call takes
        with PeakMemory(interval=0.002, alone=True) as memory:
            run(size)
        peaks.append(memory.peak)
    return largest_batch(free, (peaks[1] - peaks[0]) / (large - small), most)


def fits_on_cuda(run: Callable[[int], Any], size: int) -> bool:
    try:
        run(size)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True
