"""Rows of .npy files, read where they lie.

Reads, not memory maps: a map counts toward a process's memory page by page as it is read, a recent Linux brings in up
to 2 MB for one row, and a map holds its file open. What is read here lies in the kernel's cache alone.
"""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clip_distill.system.errors import InvalidValue


def open_files() -> int:
    """How many files to hold open: half of what the system allows this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))


def data_offset(path: Path, shape: tuple[int, int], dtype: str) -> int:
    """Where the numbers of a .npy file begin, in bytes.

    Raises:
        ValueError: The file holds something else than `shape` and `dtype`, or ends too early.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    found = (found_shape, str(found_dtype), fortran, path.stat().st_size - offset)
    expected = (shape, dtype, False, math.prod(shape) * np.dtype(dtype).itemsize)
    if found != expected:
        raise InvalidValue(f"{path}: expected (shape, dtype, Fortran order, bytes) {expected}, found {found}")
    return offset


def raw(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, to be read into; of length 0 where it is empty."""
    return array.reshape(-1).view(np.uint8).data


def read_into(out: memoryview, file: IO[bytes], offset: int) -> None:
    """Fill bytes from a file; its position isn't used, so that processes and threads may share it.

    Raises:
        EOFError: The file ends before.
    """
    while out:
        count = os.preadv(file.fileno(), [out], offset)
        if count == 0:
            raise EOFError(f"{file.name}: expected {len(out)} more bytes at {offset}, found its end")
        out, offset = out[count:], offset + count
