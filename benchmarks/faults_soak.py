"""Commands that go on for long: memory must stay flat, and no file may stay open."""

from __future__ import annotations

import http.client
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from faults_bed import Bed, last_line
from faults_kill import Outcomes
from faults_machine import await_steps
from faults_warm import HANGS, Child

WARM_UP = 0.4  # of all that is measured: caches fill, the allocator finds its size
MOST_GROWTH = 8e6  # bytes over the rest of it
QUESTIONS = ("/api/search?q=a%20red%20circle", "/api/search?q=2:blue%20-square&k=50", "/api/latest?k=20", "/api/status")
QUESTIONS += ("/thumb/7", "/photo/9", "/", "/api/search?q=&like=3", "/photo/1000000")


def soak_fit(bed: Bed, seconds: int, rng: random.Random) -> Outcomes:
    """`fit` for so many seconds; Ctrl-C ends it."""
    out = bed.place()
    child = bed.warm.verb(*bed.fit(out, 10**6, "--trainer.check_val_every_n_epoch", 10))
    if not await_steps(out, [child]):
        yield f"training never began: {last_line(child)}"
        return
    looks = [*look(child, np.linspace(0, seconds, 60))]
    lost = last_line(child) if len(looks) < 60 else grown(looks)
    child.kill()
    yield lost and f"fit for {seconds} s: {lost}"


def soak_search(bed: Bed, requests: int, rng: random.Random) -> Outcomes:
    """The server of `search` answers so many requests to 127.0.0.1."""
    words = bed.search(bed.place())
    child = bed.warm.verb(*[word for word in words if word != "--index_only"], "--open", "false")
    port = await_port(child)
    if port is None:
        yield f"the server never began: {last_line(child)}"
        return
    looks, failed = [], 0
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(requests):
        path = rng.choice(QUESTIONS)
        asked.request("GET", path, headers={"Connection": "close"} if number % 50 == 0 else {})
        answer = asked.getresponse()
        answer.read()
        failed += answer.status != (404 if path == "/photo/1000000" else 200)
        if number % max(1, requests // 60) == 0:
            looks.append(state_of(child))
    asked.close()
    os.kill(child.pid, signal.SIGINT)
    lost = f"{failed:,} requests failed" if failed else grown(looks)
    lost = lost or (None if child.ends_within(HANGS) else "Ctrl-C did not end it")
    child.kill()
    yield lost and f"{requests:,} requests: {lost}"


def await_port(child: Child) -> int | None:
    """Where the server listens, once its index is up to date."""
    end = time.monotonic() + HANGS
    while "photos added" not in child.said:
        if child.ends_within(0.05) or time.monotonic() > end:
            return None
    return int(child.said.partition("http://127.0.0.1:")[2].partition("/")[0])


def state_of(child: Child) -> tuple[int, int]:
    """Resident bytes and open files of a process."""
    pages = int(Path(f"/proc/{child.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{child.pid}/fd"))


def look(child: Child, moments: np.ndarray) -> Iterator[tuple[int, int]]:
    """The state at moments (seconds from now), until the process ends."""
    began = time.monotonic()
    for moment in moments:
        if child.ends_within(max(0.0, moment - (time.monotonic() - began))):
            return
        yield state_of(child)


def grown(looks: list[tuple[int, int]]) -> str | None:
    """Whether memory or open files grow after the warm-up, by a straight line through what was seen."""
    rest = np.array(looks[int(WARM_UP * len(looks)) :], dtype=np.float64)
    growth = np.polyfit(np.arange(len(rest)), rest, 1)[0] * len(rest)
    if growth[0] > MOST_GROWTH:
        return f"memory grew by {growth[0] / 1e6:.0f} MB, to {rest[-1, 0] / 1e6:.0f} MB"
    if rest[-1, 1] > rest[:, 1].min() + 2:  # a connection, and a file at hand
        return f"open files grew from {rest[:, 1].min():.0f} to {rest[-1, 1]:.0f}"
    return None
