"""A step of the quickstart: told, shown as the command that it is, run and timed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from rich.console import Console

WIDTH = 100  # of what is printed; a table cut to a pipe's 80 columns would lose digits

RunVerb = Callable[[str, Sequence[str]], None]  # as `clip-distill VERB ARGUMENTS`


class Steps:
    """Runs steps and remembers how long each took.

    Args:
        console: Where their titles go.
        run_verb: Runs a verb.
    """

    def __init__(self, console: Console, run_verb: RunVerb) -> None:
        self.console, self.run_verb = console, run_verb
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str, story: str, command: Sequence[str] = ()) -> Iterator[None]:
        """Show the title, what happens, and the command that does the same by itself; then time what is inside."""
        self.console.rule(f"[bold]{title}", align="left")
        self.console.print(story, highlight=False, markup=False)
        if command:
            self.console.print(folded(command), style="cyan", highlight=False, soft_wrap=True, markup=False)
        self.console.print()
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start
        self.console.print(f"({self.seconds[title]:.0f} s)\n", style="dim", highlight=False)

    def run(self, title: str, story: str, verb: str, *arguments: str) -> None:
        """Run `clip-distill VERB ARGUMENTS` in this process."""
        with self.step(title, story, ["clip-distill", verb, *arguments]):
            self.run_verb(verb, arguments)


def folded(command: Sequence[str]) -> str:
    """A command to copy, on lines of at most `WIDTH` columns; a flag stays on the line of its value."""
    starts = [place for place, word in enumerate(command) if place == 0 or word.startswith("--")]
    parts = [shlex.join(command[start:end]) for start, end in pairwise([*starts, len(command)])]
    lines = ["$ " + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += " " + part
    return "\n".join(lines)
