"""How long torch's CPU threads spin before they sleep; OpenMP reads it once, as torch is loaded."""

from __future__ import annotations

import os

SPINS = "3000"


def wait_shortly() -> None:
    """Let threads that wait for each other spin shortly, then sleep, unless the environment says otherwise.

    They wait thousands of times in a small student's step. Where they sleep at once, idle cores lose a quarter of
    their speed; where they spin on, as libgomp lets them, one core that is busy otherwise halves it
    (benchmarks/waiting.py). OMP_WAIT_POLICY speaks to other OpenMP libraries: there they sleep at once.

    To be called before torch is imported; processes started from this one inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
