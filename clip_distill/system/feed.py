"""torch's DataLoader, whose worker processes can't leave it waiting.

A worker hands a batch over in shared memory, or through its pipe where there is no room (a container's /dev/shm has
64 MB); one that dies, or stays at one file, ends the run with that file's name. torch's own loader loses a batch that
can't be shared, and waits for it for ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from clip_distill.system import at_work
from clip_distill.system.errors import Error, WorkerFailed
from clip_distill.system.processes import end_with_parent
from clip_distill.system.talk import say

T = TypeVar("T")
SHARED = Path("/dev/shm")
SPARE_BYTES = 2**20  # of shared memory, for what else wants some: the semaphores of other workers, other programs
TIMEOUT = "CLIP_DISTILL_WORKER_TIMEOUT"
SECONDS = 120.0
DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed|exited)")
KEPT = "What was finished is kept: run the same command again (fit: with --resume)"


class _Piped(NamedTuple):
    """A batch whose tensors are arrays, which travel within the message."""

    batch: Any


class _Failed(NamedTuple):
    """What a worker raised, as it was: torch would make a traceback its message."""

    error: Exception


class Feed(DataLoader[T]):
    """`DataLoader`, with the same arguments; a collate function is not to share memory, as torch's own does.

    Raises:
        WorkerFailed: While batches are drawn: a worker died, or none came to another file for 120 seconds, or those of
            CLIP_DISTILL_WORKER_TIMEOUT.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int = 0, **options: Any) -> None:
        if num_workers and not isinstance(dataset, _Caught):
            dataset = _Caught(dataset)
        super().__init__(dataset, num_workers=num_workers, **options)
        self.notes = [at_work.new_note() for _ in range(num_workers)]
        if num_workers:
            self.timeout = float(os.environ.get(TIMEOUT, SECONDS))
            self.worker_init_fn = _Begin(self.notes)
            self.collate_fn = _HandOver(self.collate_fn)
            _feeds.add(self)

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch's own iterator type is private
        if not self.num_workers:
            yield from super().__iter__()
            return
        with named_failures():
            batches = super().__iter__()
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, _Failed):
                    raise batch.error
                if isinstance(batch, _Piped):
                    _say_once(f"loader: {SHARED} has no room for the batches under way, so they come through pipes")
                    batch = tree_map(_to_tensor, batch.batch)
                yield batch

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch, or None; waits for as long as some worker comes to another file."""
        while True:
            before = self.at()
            try:
                return next(batches, None)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                if self.at() == before:
                    raise WorkerFailed(
                        f"expected the next batch, found that no worker went on for {self.timeout:g} s; at work on: "
                        f"{_files(before)}. See whether it can be read (a network folder that is gone?), or set "
                        f"{TIMEOUT} to more seconds. {KEPT}"
                    ) from None
            except (EOFError, ConnectionError):  # it died amid a message
                time.sleep(1)  # in which torch's own handler interrupts, and says which one it was
                raise _dead(self.at()) from None

    def at(self) -> list[tuple[int, str]]:
        """Process number and latest file of each worker."""
        return [at_work.read(note) for note in self.notes]


_feeds: WeakSet[Feed[Any]] = WeakSet()
_say_once = cache(say)


@contextlib.contextmanager
def named_failures() -> Iterator[None]:
    """Say of a worker that died which file it was at; torch interrupts whatever the main process does just then.

    Raises:
        WorkerFailed: A worker died within the `with` block.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, Error) or not (died := DEAD.search(str(error))):
            raise
        dead = {int(number) for number in died[1].split(",")}
        raise _dead([(number, path) for feed in _feeds for number, path in feed.at() if number in dead]) from None


def _dead(workers: list[tuple[int, str]]) -> WorkerFailed:
    return WorkerFailed(
        f"expected a batch, found that a worker process died at {_files(workers)}, killed for want of memory perhaps: "
        f"then lower the number of workers or the batch size. {KEPT}"
    )


def _files(workers: list[tuple[int, str]]) -> str:
    return ", ".join(sorted({path or "its start" for _, path in workers}))


class _Caught(Dataset[Any]):
    """A data set whose known errors are items, so that they come to the main process as they are."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # all that a Feed is given have a length

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except (Error, OSError) as error:
            return _Failed(error)


class _Begin:
    """A worker's start: it writes down where it is, ends with its parent, and leaves Ctrl-C to it."""

    def __init__(self, notes: list[at_work.Note]) -> None:
        self.notes = notes

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler of the parent's would not run while a read hangs
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_heed_parent, daemon=True).start()
        at_work.begin(self.notes[worker])
        end_with_parent()


def _heed_parent() -> None:
    """End this worker at its parent's SIGTERM alone: a scheduler's goes to all, and the parent saves its step first."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(1)


class _HandOver:
    """Collates in a worker, and puts the batch where it can travel."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate: Callable[[Any], Any] = collate.collate if isinstance(collate, _HandOver) else collate

    def __call__(self, items: Any) -> Any:
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, _Failed):
                return item
        batch = self.collate(items)
        tensors = [each for each in tree_leaves(batch) if isinstance(each, Tensor)]
        if _free_bytes() - sum(each.nbytes for each in tensors) > SPARE_BYTES:
            with contextlib.suppress(RuntimeError):  # another process took the room meanwhile
                for each in tensors:
                    each.share_memory_()
                return batch
        return _Piped(tree_map(lambda each: each.numpy() if isinstance(each, Tensor) else each, batch))


def _free_bytes() -> float:
    """Of shared memory; without a limit where a system keeps it elsewhere."""
    if not SHARED.is_dir():
        return float("inf")
    there = os.statvfs(SHARED)
    return there.f_bavail * there.f_frsize


def _to_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
