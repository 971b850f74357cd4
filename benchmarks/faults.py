"""Faults are injected into commands; each must end as if nothing had been, or say clearly what is wrong.

    python benchmarks/faults.py --minutes 30
    python benchmarks/faults.py --minutes 3 --only kill-fit full-embed

A fault is survived where the same command, run again, ends with what an undisturbed one leaves, bit for bit, where
whoever reads meanwhile finds something whole or a clear error, and where nothing waits for ever. With the same seed the
same moments are drawn. `faults_warm.py` has the processes, `faults_bed.py` the commands, `faults_kill.py`,
`faults_machine.py` and `faults_soak.py` the faults; tests/faults runs each a few times.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours

from faults_bed import Bed
from faults_kill import Outcomes, full_disk, kills, small_disk
from faults_machine import dead_rank, little_memory, read_only, shared_memory, vanishing
from faults_soak import soak_fit, soak_search
from faults_warm import Skip, Warm

MINUTES = 30


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Args:
        title: What is done.
        inject: Bed, how often, numbers to draw by → an outcome for each.
        times: How often in half an hour.
        unit: Of a soak's times; "" where they are trials.
    """

    title: str
    inject: Callable[[Bed, int, random.Random], Outcomes]
    times: int
    unit: str = ""


WRITERS = ("embed", "fit", "export", "reduce", "search")
FAULTS = {
    **{f"kill-{name}": Fault(f"`{name}` killed at any moment", partial(kills, name=name), 40) for name in WRITERS},
    **{f"full-{name}": Fault(f"`{name}`, no room from the n-th write on", partial(full_disk, name=name), 30)
       for name in WRITERS},
    **{f"disk-{name}": Fault(f"`{name}` on a small disk", partial(small_disk, name=name), 4) for name in WRITERS},
    **{f"read-only-{name}": Fault(f"`{name}`, home, data or output read-only", partial(read_only, name=name), 1)
       for name in WRITERS},
    **{f"vanish-{name}": Fault(f"`{name}`, a photo vanishes", partial(vanishing, name=name), 4)
       for name in ("embed", "search")},
    **{f"shm-{size}": Fault(f"/dev/shm of {size}B: `fit`, `embed` with workers", partial(shared_memory, size=size), 1)
       for size in ("4M", "64M")},
    "memory": Fault("2 GiB of memory: `embed`, `fit`, `search`", little_memory, 1),
    "dead-rank": Fault("one of two processes of `fit` (DDP, gloo) killed", dead_rank, 6),
    "soak-fit": Fault("`fit`: memory and open files", soak_fit, 240, "s"),
    "soak-search": Fault("the server of `search`: memory and open files", soak_search, 100_000, "requests"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="about so long for all, on two idle cores")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME", help="some of them")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| fault | injected | survived | lost |\n| --- | ---: | ---: | ---: |")
    lost = 0
    with tempfile.TemporaryDirectory() as folder, Warm(Path(folder) / "warm") as warm:
        bed = Bed(warm, Path(folder) / "bed")
        for name in given.only:
            lost += report(
                FAULTS[name], bed, given.minutes / MINUTES, random.Random(zlib.crc32(name.encode()) + given.seed)
            )
    sys.exit(lost > 0)


def report(fault: Fault, bed: Bed, share: float, rng: random.Random) -> int:
    """Inject a fault and print its row; how often something was lost."""
    times = max(1, round(fault.times * share))
    title = f"{fault.title}, {times:,} {fault.unit}" if fault.unit else fault.title
    try:
        outcomes = []
        for outcome in fault.inject(bed, times, rng):
            outcomes.append(outcome)
            if outcome is not None:
                print(outcome, file=sys.stderr, flush=True)
    except Skip as reason:
        print(f"| {title} | not injected: {reason} | | |", flush=True)
        return 0
    lost = sum(outcome is not None for outcome in outcomes)
    print(f"| {title} | {len(outcomes)} | {len(outcomes) - lost} | {lost} |", flush=True)
    return lost


if __name__ == "__main__":
    main()
