"""Machines that lack something: a file that was there, a folder to write, shared memory, memory, the other process."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults_bed import ROOT, Bed, Result, Work, difference, files, indexed, last_line, trained
from faults_kill import Outcomes
from faults_warm import HANGS, Child, Skip, require_mounts

SEPARATE = 60.0  # seconds in which a process must notice that the other is dead
MEMORY = 2 << 30


def vanishing(bed: Bed, times: int, rng: random.Random, name: str) -> Outcomes:
    """A photo is deleted between listing and reading, and comes back before the same command is run again."""
    for number in range(times):
        out, data = bed.place(), bed.folder / f"vanishing-{name}-{number}"
        source = bed.photos if name == "search" else bed.data
        shutil.copytree(source, data)
        photos = data if name == "search" else data / "image"
        victim = rng.choice(sorted(photos.iterdir())[1:])
        words = [str(word).replace(str(source), str(data)) for word in bed.works[name].argv(out)]
        kept = victim.read_bytes(), victim.stat()
        child = bed.warm.verb(*words, vanish=(str(photos), str(victim))).wait()
        named = victim.name in child.said or "skipped" in child.said
        lost = None if child.clear or (child.code == 0 and named) else f"neither reported nor an error: {child.log}"
        victim.write_bytes(kept[0])
        os.utime(victim, ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
        child = bed.warm.verb(*words).wait()
        lost = lost or (None if child.code == 0 else last_line(child)) or not_complete(name, out, photos)
        shutil.rmtree(data)
        yield lost and f"{name}, {victim.name} vanished: {lost}"


def not_complete(name: str, out: Path, photos: Path) -> str | None:
    """Whether a photo is missing in a store or an index."""
    count = len(list(photos.iterdir()))
    if name == "search":
        found = sum(path.startswith(str(photos)) for path in indexed(out))
    else:
        import json

        found = json.loads((out / "image-train/manifest.json").read_text(encoding="utf-8"))["rows"]
    return None if found == count else f"{found} of {count} photos after they were all there again"


def read_only(bed: Bed, times: int, rng: random.Random, name: str) -> Outcomes:
    """What can't be written: a home, so that nothing is cached, and the data; and the folder of the output."""
    require_mounts(bed.warm)
    work = bed.works[name]
    bed.undisturbed(work)
    home = bed.folder / "home"
    home.mkdir(exist_ok=True)
    sources = [home, bed.data, bed.photos, bed.store, bed.folder / "teacher-data"]
    without = {"HOME": str(home), **dict.fromkeys(("CLIP_DISTILL_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"))}
    for _ in range(times):
        out = bed.place()
        places = [str(each) for each in sources]
        child = bed.warm.verb(*work.argv(out), read_only=places, environ=without).wait()
        lost = last_line(child) if child.code else difference(bed.undisturbed(work)[0], work.result(out))
        yield lost and f"{name}, home and data read-only: {lost}"
        out = bed.place()
        child = bed.warm.verb(*work.argv(out), read_only=[str(out)]).wait()
        yield None if child.clear else f"{name}, output read-only: {last_line(child)}"


def shared_memory(bed: Bed, times: int, rng: random.Random, size: str) -> Outcomes:
    """/dev/shm is small; batches of 38 MB and photos of 12 megapixels."""
    require_mounts(bed.warm)
    for work in wide_works(bed):
        expected = bed.undisturbed(work)[0]
        for _ in range(times):
            out = bed.place()
            child = bed.warm.verb(*work.argv(out), tmpfs={"/dev/shm": size}).wait()
            yield wrong(f"{work.name} with {size} of /dev/shm", child, expected, work, out)


def wide_works(bed: Bed) -> list[Work]:
    return [
        Work("fit, 1 worker", lambda out: bed.fit_wide(out, 1), trained),
        Work("fit, 2 workers", lambda out: bed.fit_wide(out, 2), trained),
        Work("embed, 1 worker", lambda out: bed.embed_wide(out, 1), files),
    ]


def wrong(what: str, child: Child, expected: Result, work: Work, out: Path) -> str | None:
    lost = last_line(child) if child.code else difference(expected, work.result(out))
    shutil.rmtree(out)
    return lost and f"{what}: {lost}"


def little_memory(bed: Bed, times: int, rng: random.Random) -> Outcomes:
    """2 GiB for a fresh process and its workers, by a control group, which counts what is used.

    What is expected is what another fresh process leaves: a forked one adds numbers up with other threads.
    """
    with control_group(MEMORY) as tasks:

        def join() -> None:
            tasks.write_text(str(os.getpid()), encoding="ascii")

        def result(work: Work, limit: Callable[[], None] | None) -> Result | str:
            out = bed.place()
            words = [sys.executable, "-m", "clip_distill", *map(str, work.argv(out))]
            ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=limit)
            said = (ended.stdout + ended.stderr).strip().splitlines()[-1:]
            found = f"exit status {ended.returncode}, {said}" if ended.returncode else work.result(out)
            shutil.rmtree(out, ignore_errors=True)
            return found

        for work in [*wide_works(bed), bed.works["fit"], bed.works["search"]]:
            expected = result(work, None)
            for _ in range(times):
                found = result(work, join)
                told = [each for each in (found, expected) if isinstance(each, str)]
                lost = told[0] if told else difference(expected, found)  # type: ignore[arg-type]
                yield lost and f"{work.name} in 2 GiB: {lost}"


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group of so many bytes, below this process's own; the file that a process joins it by."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    kinds = {"memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "tasks")}
    kinds[""] = ("/sys/fs/cgroup", "memory.max", "cgroup.procs")
    for kind, (root, most, tasks) in kinds.items():
        group = Path(f"{root}{own.get(kind, '/')}") / f"clip-distill-{os.getpid()}"
        try:
            group.mkdir()
            (group / most).write_text(str(limit), encoding="ascii")
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group / tasks
        finally:
            group.rmdir()
        return
    raise Skip("no control group of memory can be made here")


def dead_rank(bed: Bed, times: int, rng: random.Random) -> Outcomes:
    """One of two processes of DDP (gloo) is killed while they train: the other must end, with an error."""
    for number in range(times):
        out = bed.place()
        ranks = [*both_ranks(bed, out)]
        if not await_steps(out, ranks):
            lost = f"training never began: {last_line(ranks[0].wait(1))}"
        else:
            time.sleep(rng.uniform(0, 1))
            ranks[number % 2].kill()
            other = ranks[1 - number % 2]
            ended = other.ends_within(SEPARATE)
            lost = None if ended and other.code != 0 else f"the other, after {SEPARATE:.0f} s: exit code {other.code}"
        for each in ranks:
            each.kill()
        yield lost and f"rank {number % 2} of 2 killed: {lost}"


def both_ranks(bed: Bed, out: Path) -> Iterator[Child]:
    """Two processes of an endless run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in ("0", "1"):
        environ: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = bed.fit(out, 100_000, "--trainer.strategy", "ddp", "--trainer.devices", "2")
        yield bed.warm.verb(*words, environ=environ)


def await_steps(out: Path, running: list[Child]) -> bool:
    """Wait until a run has written a checkpoint, or a process of it has ended."""
    end = time.monotonic() + HANGS
    while not (out / "checkpoints/last.ckpt").is_file():
        if any(each.ends_within(0.05) for each in running) or time.monotonic() > end:
            return False
    return True
