"""How long OpenMP's threads should spin before they sleep: a text student's training step, on idle and on busy cores.

    python benchmarks/waiting.py

A step of a small student is thousands of short parallel regions. A thread that sleeps between them must be woken each
time; one that spins is there at once, but takes its core from whatever else would run. Each measurement is a process
of its own, since OpenMP reads its settings as it is loaded; the counts take turns, and ratios are of one turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours

from throughput import spread

BATCH = 256
ROUNDS = 4  # of the steps, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", nargs="+", default=["0", "1000", "3000", "10000", "300000"], help="0 sleeps at once")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    rates: dict[tuple[int, str], list[float]] = {}
    for turn in range(given.turns):
        for busy in (0, 1):
            with busy_cores(busy):
                for spins in given.spins:
                    rates.setdefault((busy, spins), []).append(in_fresh_process(spins))
                    print(f"turn {turn + 1}, {busy} busy, {spins}: {rates[busy, spins][-1]:,.0f}/s", file=sys.stderr)
    report(rates, given.spins)


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """Processes that compute without end, one a core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def in_fresh_process(spins: str) -> float:
    """Captions per second where threads spin so many times."""
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=spins)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(step_rate).result()


def step_rate() -> float:
    """Captions per second of the default text student: forward, backward and AdamW."""
    import torch
    from switches import STEPS, steps

    from clip_distill.system.allocator import keep_memory

    keep_memory()
    torch.manual_seed(0)
    run = steps("text", BATCH, "none")
    run()  # to warm up
    began = time.perf_counter()
    for _ in range(ROUNDS):
        run()
    return BATCH * STEPS * ROUNDS / (time.perf_counter() - began)


def report(rates: dict[tuple[int, str], list[float]], spins: list[str]) -> None:
    """A Markdown table; ratios to the first count, of the same turn."""
    print("| `GOMP_SPINCOUNT` | captions/s, idle | times the first | captions/s, one core busy | times the first |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for each in spins:
        cells = []
        for busy in (0, 1):
            one, first = rates[busy, each], rates[busy, spins[0]]
            cells.append(spread(one, "{:,.0f}".format))
            cells.append(spread([a / b for a, b in zip(one, first, strict=True)], "{:.2f}×".format))
        print(f"| {each} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
