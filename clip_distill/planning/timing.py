"""Time a few steps of something that would take hours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from clip_distill.planning.estimate import Rate


def timed(run: Callable[[], Any], items: int, seconds: float) -> Rate:
    """Speed of `run`, which does `items` at a time, after one call to warm up."""
    run()
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        run()
        calls += 1
    return Rate(calls * items, time.perf_counter() - began)


def timed_steps(steps: Iterable[int], warm: int, seconds: float, least: int = 2) -> Rate:
    """Speed of a loop that yields how many items each of its steps did; its first `warm` steps don't count.

    It ends when `seconds` and `least` steps were measured. A loop that ends before is measured as far as it went.
    """
    began, done, counted = time.perf_counter(), 0, 0
    for number, items in enumerate(steps):
        now = time.perf_counter()
        if number < warm:
            began = now
            continue
        done += items
        counted += 1
        if counted >= least and now - began > seconds:
            break
    return Rate(done, time.perf_counter() - began)
