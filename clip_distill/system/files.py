"""Files and folders, written whole or not at all, and by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from clip_distill.system.errors import AlreadyExists, NotWritten

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; see `write_bytes`."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of one.

    Raises:
        NotWritten: The disk is full, or the folder read-only; what was there is there still.
    """
    with aside(path) as beside:
        beside.write_bytes(content)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Where to write a file, or a folder, that takes the place of `path` when the block has ended, and not before.

    It lies in the same folder, so on the same disk, and is flushed to it before it is renamed. A block that fails
    leaves what was there; what a killed process left beside is removed by the next one.

    Raises:
        NotWritten: The disk is full, or the folder read-only.
    """
    beside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield beside
        for file in [beside, *beside.rglob("*")] if beside.is_dir() else [beside]:
            sync(file)
        old = beside.with_suffix(".old.tmp")
        if beside.is_dir() and path.exists():  # a folder can't replace one that holds something
            path.rename(old)
        os.replace(beside, path)
        sync(path.parent)
        _remove(old)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        _remove(beside)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk: a rename alone may not survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def not_written(path: Path, error: OSError, kept: str = "What was there is there still") -> OSError:
    """The error of a write as one that says what to do; as it was where it is no error of writing."""
    if error.errno in FULL:
        there = next(each for each in path.absolute().parents if each.is_dir())
        free = shutil.disk_usage(there).free / 2**20
        reason = f"the disk, a quota or a limit on file size is full ({error}; {free:.0f} MiB free)"
        fix = "make room"
    elif error.errno in READ_ONLY or not path.parent.is_dir():
        reason, fix = f"the folder can't be written to ({error})", "name another folder, or let this user write to it"
        if cache_folder() in path.parents:
            fix = "set CLIP_DISTILL_CACHE (or XDG_CACHE_HOME) to a folder that this user can write to"
    else:
        return error
    return NotWritten(f"{path}: could not write: {reason}. {kept}: {fix} and run the same command again")


def cache_folder() -> Path:
    """Where downloads lie: $CLIP_DISTILL_CACHE, else `clip-distill` in the user's cache folder."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-distill"
    return Path(os.environ.get("CLIP_DISTILL_CACHE") or fallback)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine that are gone left beside a file or folder."""
    for leftover in path.parent.glob(f".{_escape(path.name)}.{_escape(socket.gethostname())}-*.tmp"):
        number = leftover.name.removeprefix(f".{path.name}.{socket.gethostname()}-").partition("-")[0]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            _remove(leftover)


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; the kernel lets go of it when the process dies.

    Args:
        lock: The lock file; who holds it is written down beside it.
        what: What it is held for, for the message.

    Raises:
        AlreadyExists: Another process holds it.
        NotWritten: The folder is read-only, or the disk full.
    """
    holder, new = lock.with_name(f"{lock.name}.json"), not lock.parent.is_dir()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout:
        raise AlreadyExists(
            f"{what}: expected no other process to write there, found {_name_of(holder)}. Wait for it to end, stop it, "
            "or name another folder"
        ) from None
    except OSError as error:
        raise not_written(lock, error) from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(holder, {"process": os.getpid(), "machine": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        held.release()
        with contextlib.suppress(OSError):
            if new:
                lock.parent.rmdir()  # where nothing came of it


def _name_of(holder: Path) -> str:
    """The process that holds a lock, as far as it has said so."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = read_json(holder)
        return f"process {found['process']} on {found['machine']}, since {found['since']}"
    return "one that has just begun"


def read_json(path: Path) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
