"""Tables of made-up embeddings, and what two stores must have in common."""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SYNTHETIC = str(Path(__file__).with_name("synthetic.py"))


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The functions of `synthetic.py`."""
    return SimpleNamespace(**runpy.run_path(SYNTHETIC))


def run(place: dict[str, str], sender: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Build, and send how it ended."""
    os.environ.update(place)
    try:
        table = runpy.run_path(SYNTHETIC)["build"](*arguments, **options)
        sender.send("unfinished" if table is None else f"{len(table)} rows")
    except ValueError as error:
        sender.send(str(error))


class Child:
    """`synthetic.build` in a process of its own, of the fork server: a fresh interpreter takes seconds to import torch,
    and a fork of this process may crash, since libraries with threads of their own are loaded by other tests."""

    def __init__(self, context: ForkServerContext, rank: int, world: int, *arguments: Any, **options: Any) -> None:
        self.receiver, self.sender = context.Pipe(duplex=False)
        place = dict(os.environ) | {"RANK": str(rank), "WORLD_SIZE": str(world)}
        self.process = context.Process(target=run, args=(place, self.sender, arguments, options), daemon=True)
        self.process.start()

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
def start(forkserver: ForkServerContext) -> Callable[..., Child]:
    """Start `synthetic.build` as process `rank` of `world`."""

    def start(*arguments: Any, rank: int = 0, world: int = 1, **options: Any) -> Child:
        return Child(forkserver, rank, world, *arguments, **options)

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
