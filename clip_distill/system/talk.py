"""What the package says while it works: lines, and progress bars.

Lines go through the logger `clip_distill`, so a program that imports the package hears only warnings until it asks for
more (`logging.basicConfig(level="INFO")`), as with any library. The command line shows them on standard output.
Bars are drawn on a terminal or in a notebook; into a file or a pipe a long stage says a line every ten seconds.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

LOGGER = logging.getLogger("clip_distill")
EVERY = 10.0  # seconds between two lines of a stage


def is_first() -> bool:
    """Whether this is the first process of a run, whoever started it: torchrun, Lightning or SLURM."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def say(*lines: str) -> None:
    """Say lines in the first process of a run alone."""
    if is_first():
        for line in lines:
            LOGGER.info("%s", line)


class _Console(logging.Handler):
    """Prints to whatever standard output is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def to_console(level: int = logging.INFO) -> None:
    """Show lines of this level and above on standard output, as the command line does; bars too, from INFO down."""
    LOGGER.handlers = [_Console()]
    LOGGER.propagate = False
    LOGGER.setLevel(level)


def loudness() -> int | None:
    """The level of `to_console`; None where it was not called."""
    return LOGGER.level if LOGGER.handlers else None


def is_quiet() -> bool:
    """Whether the command line was asked to leave out everything but results and warnings."""
    return (loudness() or 0) > logging.INFO


def on_terminal() -> bool:
    """Whether a bar can be drawn where the program runs."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class _Lines(plain_tqdm):  # type: ignore[type-arg]  # tqdm has no types
    """A bar for a file or a pipe: a line now and then, none for what ends before the first is due."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"file": io.StringIO(), "leave": False, "mininterval": EVERY, "delay": EVERY, "miniters": 1}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is not None:  # `close` wipes the bar with an empty one
            return
        facts = self.format_dict
        show = self.format_sizeof if facts["unit_scale"] else "{:,.0f}".format
        rate = (self.n - self.initial) / max(facts["elapsed"], 1e-9)
        whole = f" of {show(self.total)}" if self.total else ""
        left = f", {self.format_interval((self.total - self.n) / rate)} left" if self.total and rate else ""
        say(f"{facts['prefix']}: {show(self.n)}{whole} {self.unit.strip()}, {show(rate)}/s{left}")


def progress(rows: Iterable[Any] | None = None, desc: str = "", total: int | None = None, **options: Any) -> Any:
    """tqdm, for anything that may take over two seconds: a bar where one can be drawn, else lines, or nothing if quiet.

    Args:
        rows: What to go through; None for a bar that is updated by hand.
        desc: What is going on.
        total: How much there is.
        options: tqdm's, such as `unit`, `delay`, `initial`.
    """
    options.setdefault("delay", 2)
    first = all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "SLURM_LOCALID"))
    if is_quiet() or not first:
        return plain_tqdm(rows, desc, total, disable=True, **options)
    make = tqdm if on_terminal() else _Lines
    return make(rows, desc, total, **options)
