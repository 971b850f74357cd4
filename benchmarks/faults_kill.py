"""Commands that are killed, or left without room: the same command again must end as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from faults_bed import HALF, NONE_WHOLE, Bed, Work, difference, last_line
from faults_warm import FULL, KILL, REMOUNT, Child, mount, own_mounts, require_mounts, run_child

Outcomes = Iterator[str | None]  # None survived; else what was lost


def kills(bed: Bed, times: int, rng: random.Random, name: str) -> Outcomes:
    """SIGKILL by turns at a random moment of the command's duration, and at a random call that changes files."""
    work = bed.works[name]
    _, counted, seconds = bed.undisturbed(work)
    for number in range(times):
        out = bed.place()
        if number % 2 and bed.warm.counts:
            at = rng.randint(1, counted.calls)
            moment = f"killed at call {at} of {counted.calls}"
            bed.warm.verb(*work.argv(out), calls=(str(out), KILL, at)).wait()
        else:
            after = rng.uniform(0, seconds)
            moment = f"killed after {after:.2f} s of {seconds:.2f}"
            child = bed.warm.verb(*work.argv(out))
            child.ends_within(after)
            child.kill()
        lost = half_read(bed, work, out) or bed.mended(work, out)
        yield lost and f"{name}, {moment}: {lost}"


def half_read(bed: Bed, work: Work, out: Path) -> str | None:
    """A reader that starts right after must find something whole, or say clearly that there is nothing."""
    reader = bed.warm.start("faults_bed:read", work=work.name, out=str(out)).wait()
    if reader.code in (0, NONE_WHOLE):
        return None
    what = "something half-written was taken for whole" if reader.code == HALF else "no clear error for a reader"
    return f"{what}: {last_line(reader)}"


def full_disk(bed: Bed, times: int, rng: random.Random, name: str) -> Outcomes:
    """No room from the n-th call on that changes files, for as many n as asked, evenly from the first to the last."""
    work = bed.works[name]
    _, counted, _ = bed.undisturbed(work)
    total = counted.calls
    for at in sorted({round(1 + number * (total - 1) / max(1, times - 1)) for number in range(times)}):
        out = bed.place()
        child = bed.warm.verb(*work.argv(out), calls=(str(out), FULL, at)).wait()
        lost = not_clear(bed, work, out, child) or half_read(bed, work, out) or bed.mended(work, out)
        yield lost and f"{name}, full from call {at} of {total}: {lost}"


def not_clear(bed: Bed, work: Work, out: Path, child: Child) -> str | None:
    """A command that was disturbed ends with a clear error, or with all it should have made."""
    if child.code == 0:
        different = difference(bed.undisturbed(work)[0], work.result(out))
        return different and f"it ended as if all were well, but {different}"
    return None if child.clear else f"no clear error: {last_line(child)}"


def small_disk(bed: Bed, times: int, rng: random.Random, name: str) -> Outcomes:
    """A disk of a part of the room that the command needs, then one of more."""
    require_mounts(bed.warm)
    work = bed.works[name]
    out = bed.place()
    needed = bed.warm.verb(*work.argv(out)).wait() and sum(each.stat().st_size for each in out.rglob("*"))
    for _ in range(times):
        out = bed.place()
        kept = out.with_suffix(".kept")
        size = max(4096, int(needed * rng.uniform(0, 1)))
        words = [str(word) for word in work.argv(out)]
        arguments = {"words": words, "again": [*words, *work.again], "place": str(out), "size": size, "out": str(kept)}
        child = bed.warm.start("faults_kill:on_small_disk", **arguments).wait()
        lost = None if child.code == 0 else last_line(child)
        if lost is None:
            out.rmdir()
            kept.rename(out)
            lost = difference(bed.undisturbed(work)[0], work.result(out))
            shutil.rmtree(out)
        yield lost and f"{name}, a disk of {size:,} bytes: {lost}"


def on_small_disk(words: list[str], again: list[str], place: str, size: int, out: str) -> None:
    """Run a command on a small disk, make room, run it again, and bring what it made to `out`; in a process of the
    server, whose mount ends with it."""

    def code_of(argv: list[str]) -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(run_child("faults_warm:verb", {"argv": argv}, f"{out}.log"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(Path(f"{out}.log").read_text(encoding="utf-8")[-2000:])
        return code

    own_mounts({place: str(size)}, [])
    assert code_of(words) in (0, 1), "no clear error"
    mount("none", place, REMOUNT, "size=256m")
    assert code_of(again) == 0, "the same command again failed"
    shutil.copytree(place, out)
