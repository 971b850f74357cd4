"""How many cores there are to work with."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Processes that render photos, where nothing is measured: all cores but one, 8 at most."""
    return min(8, max(1, cores() - 1))
