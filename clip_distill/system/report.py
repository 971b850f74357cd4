"""What a verb found out: a table for people, every number for programs."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any

from rich.console import Console

WIDTH = 120  # of a report as a string


@dataclass(frozen=True)
class Report:
    """What a verb found out. Printed it is a table.

    Args:
        numbers: All of it, as plain data.
        saved: Where it was written to.
    """

    numbers: dict[str, Any]
    saved: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain data, for JSON for instance."""
        return copy.deepcopy(self.numbers)

    def show(self, console: Console | None = None) -> None:
        """Print the table, by default on standard output."""
        raise NotImplementedError

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=WIDTH, no_color=True))
        return text.getvalue().strip("\n")
