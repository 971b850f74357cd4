"""How much memory a process has had; and what glibc's allocator does with freed memory, elsewhere nothing."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Let glibc keep freed blocks for the next step.

    By itself it maps large blocks anew each time, and a training step pays for clearing their pages: 3 to 20 % of a
    text student's step, measured on two cores.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return what is freed to the system, now.

    Before worker processes are forked: each would hold a copy of what was kept as soon as this process uses it again
    (1.4 GB for each loader of `embed`, measured with a batch of 64 photos).
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget_peak() -> None:
    """Let `most_resident_bytes` of this process count from now on, where the system can: Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def most_resident_bytes(process: psutil.Process | None = None) -> int:
    """The most memory that a process has had since it started, or since `forget_peak`.

    Linux keeps count, macOS of this process alone; of another one there, what it has now. None is this process.
    """
    process = process or psutil.Process()
    if sys.platform == "darwin" and process.pid == os.getpid():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there, in KiB on Linux
    status, now = Path(f"/proc/{process.pid}/status"), process.memory_info()
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    most = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return max([int(now.rss), *most])
