"""Tables of made-up embeddings, and what two stores must have in common."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The functions of `synthetic.py`."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("synthetic.py"))))


class Child:
    """`synthetic.build` in a process of its own: forked, since a fresh interpreter takes seconds to import torch."""

    def __init__(self, build: Callable[..., Any], rank: int, world: int, *arguments: Any, **options: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.receiver, self.sender = context.Pipe(duplex=False)
        self.place = {"RANK": str(rank), "WORLD_SIZE": str(world)}
        self.process = context.Process(target=self.run, args=(build, arguments, options), daemon=True)
        self.process.start()

    def run(self, build: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        os.environ.update(self.place)
        try:
            table = build(*arguments, **options)
            self.sender.send("unfinished" if table is None else f"{len(table)} rows")
        except ValueError as error:
            self.sender.send(str(error))

    def answer(self) -> str:
        """Wait for its end; what it found, or its error, or nothing if it was killed."""
        self.process.join()
        return self.receiver.recv() if self.receiver.poll() else ""

    def kill(self, after: float = 0) -> None:
        """SIGKILL, `after` some seconds unless it ends before."""
        self.process.join(after)
        self.process.kill()
        self.process.join()


@pytest.fixture
def start(synthetic: SimpleNamespace) -> Callable[..., Child]:
    """Start `synthetic.build` as process `rank` of `world`."""

    def start(*arguments: Any, rank: int = 0, world: int = 1, **options: Any) -> Child:
        return Child(synthetic.build, rank, world, *arguments, **options)

    return start


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Name → content of every file of a folder but for locks and what a killed process left aside."""

    def contents(folder: Path) -> dict[str, bytes]:
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        return {str(name): (folder / name).read_bytes() for name in shown}

    return contents


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Wait until something is true, two minutes at most."""

    def wait_for(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, "waited for two minutes in vain"
            time.sleep(0.002)

    return wait_for
