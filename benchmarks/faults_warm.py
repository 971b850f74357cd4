"""Processes that have imported everything, for `faults.py`: forked from one server, they can be killed by the hundred.

A fresh interpreter takes seconds to import torch and Lightning; a fork of one that has done so is there at once. The
server is started with `faults_calls.c` before the C library, where a C compiler is there, so that a child can be killed
at, or run out of disk from, the n-th of its calls that change files.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNT, KILL, FULL = range(3)  # as in faults_calls.c
HANGS = 240.0  # seconds after which a command that takes a few counts as hanging
NEW_MOUNTS, PRIVATE, RECURSIVE, BIND, REMOUNT, READ_ONLY = 0x20000, 1 << 18, 1 << 14, 1 << 12, 1 << 5, 1
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
CRASHED = 70  # exit code of an error that nobody expected, with its traceback


class Skip(Exception):
    """A fault can't be injected on this machine; says why."""


class Child:
    """A process of the server.

    Attributes:
        pid: Its id, and of its group.
        code: Its exit code once it has ended; −9 where it was killed.
    """

    def __init__(self, warm: Warm, pid: int, log: Path) -> None:
        self.warm, self.pid, self.log = warm, pid, log
        self.code: int | None = None
        self._handle = os.pidfd_open(pid)

    def ends_within(self, seconds: float) -> bool:
        """Wait so long at most."""
        if self.code is None and select.select([self._handle], [], [], seconds)[0]:
            os.close(self._handle)
            self.code = int(self.warm.ask({"reap": self.pid}))
        return self.code is not None

    def kill(self) -> None:
        """SIGKILL, and whatever it has started."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.ends_within(HANGS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = HANGS) -> Child:
        """Until it has ended; one that hangs is killed, and its code is −9."""
        self.ends_within(seconds)
        self.kill()
        return self

    @property
    def said(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def clear(self) -> bool:
        """Whether it ended by an error that the command line explains."""
        return self.code == 1 and "Traceback" not in self.said

    @property
    def calls(self) -> int:
        """How many of its calls changed files, if it was armed and has ended by itself."""
        return int(self.log.with_suffix(".calls").read_text(encoding="ascii"))


class Warm:
    """The server, for as long as the `with` block runs.

    Args:
        folder: For logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._number = folder, 0
        folder.mkdir(parents=True)
        environ = dict(os.environ) | {"OMP_NUM_THREADS": "1", "CLIP_DISTILL_CACHE": str(folder / "cache")}
        (folder / "tmp").mkdir()
        environ |= {"TMPDIR": str(folder / "tmp")}  # killed processes leave what they had there
        environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.counts = shutil.which("cc") is not None
        if self.counts:
            library = folder / "faults_calls.so"
            subprocess.run(
                ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults_calls.c", "-ldl"], check=True
            )
            environ["LD_PRELOAD"] = str(library)
        with open(folder / "server.log", "wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                text=True,
            )

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def ask(self, question: dict[str, Any]) -> str:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()

    def start(self, function: str, **arguments: Any) -> Child:
        """Call `module:function` in a new process."""
        self._number += 1
        log = self.folder / f"{self._number:05d}.log"
        log.touch()  # it is read before the process has begun
        pid = int(self.ask({"function": function, "arguments": arguments, "log": str(log)}))
        return Child(self, pid, log)

    def verb(self, *argv: object, **faults: Any) -> Child:
        """Start `clip-distill ARGV`; see `verb`."""
        if "calls" in faults and not self.counts:
            raise Skip("no C compiler (cc), so calls can't be counted")
        return self.start("faults_warm:verb", argv=[str(word) for word in argv], **faults)


def verb(
    argv: list[str],
    calls: tuple[str, int, int] | None = None,
    tmpfs: dict[str, str] | None = None,
    read_only: list[str] | None = None,
    environ: dict[str, str | None] | None = None,
    vanish: tuple[str, str] | None = None,
) -> None:
    """Run a command among faults; in a process of the server.

    Args:
        argv: Its words.
        calls: Folder, COUNT, KILL or FULL, and at which of the calls that change files below the folder.
        tmpfs: Folder → size of a disk in memory that is mounted there, for this process alone.
        read_only: Folders that this process can't write.
        environ: Variables; None takes one away.
        vanish: A folder and a file, which is deleted as soon as another file in the folder is opened.
    """
    from clip_distill.cli.main import main

    for name, value in (environ or {}).items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    if tmpfs or read_only:
        own_mounts(tmpfs or {}, read_only or [])
    if vanish is not None:
        delete_at_first_open(*vanish)
    if calls is not None:
        folder, action, at = calls
        ctypes.CDLL(None).faults_arm(os.fsencode(folder), action, ctypes.c_long(at))
    main(argv)


def own_mounts(tmpfs: dict[str, str], read_only: list[str]) -> None:
    """Mount disks that this process and its own alone see."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", PRIVATE | RECURSIVE)
    for place, size in tmpfs.items():
        mount("tmpfs", place, 0, f"size={size}")
    for place in read_only:
        mount(place, place, BIND)
        mount(place, place, BIND | REMOUNT | READ_ONLY)


def mount(what: str, place: str, flags: int, options: str = "") -> None:
    """mount(2); `what` is a kind of file system, or for `BIND` a folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(what.encode(), place.encode(), what.encode(), ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), f"could not mount {what} at {place}")


def require_mounts(warm: Warm) -> None:
    """
    Raises:
        Skip: This user can't mount.
    """
    if warm.start("faults_warm:own_mounts", tmpfs={}, read_only=[]).wait().code != 0:
        raise Skip("no mounts of its own (unshare -m needs root)")


def delete_at_first_open(folder: str, victim: str) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(folder) and arguments[0] != victim:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(victim)

    sys.addaudithook(hook)


def run_child(function: str, arguments: dict[str, Any], log: str) -> int:
    """Be a child: call the function, print into the log; the exit code."""
    os.setsid()
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    with open(log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for as long as it lives
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    code = 0
    try:
        module, name = function.split(":")
        getattr(importlib.import_module(module), name)(**arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = CRASHED
        traceback.print_exc()
    # as an interpreter ends: what waits for ever here would there, too
    threading._shutdown()
    atexit._run_exitfuncs()
    if hasattr(ctypes.CDLL(None), "faults_count"):
        counted = ctypes.CDLL(None).faults_count()
        Path(log).with_suffix(".calls").write_text(str(counted), encoding="ascii")
    return code


def questions() -> Iterator[dict[str, Any]]:
    while line := sys.stdin.readline():
        yield json.loads(line)


def serve() -> None:
    """Fork a child for each question on standard input, until it ends."""
    for name in ("train.begin", "train.trainer", "train.settings", "verbs.fit", "verbs.embed", "verbs.export"):
        importlib.import_module(f"clip_distill.{name}")
    for name in ("store.embed", "evaluation.exported", "model.load", "model.in_torch", "photosearch.engine"):
        importlib.import_module(f"clip_distill.{name}")
    for name in ("faults_warm", "faults_bed", "clip_distill.teachers.open_clip", "clip_distill.evaluation.reduce"):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("clip_distill.photosearch.serve")
    for question in questions():
        if "reap" in question:
            print(os.waitstatus_to_exitcode(os.waitpid(question["reap"], 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            os._exit(run_child(**question))


if __name__ == "__main__":
    serve()
