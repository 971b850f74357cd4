"""Arrays in files, mapped into memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def map_array(path: Path, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Map a .npy file into memory, read-only, without keeping it open.

    `np.load(mmap_mode="r")` holds one file descriptor per array, and many systems allow a process 1,024.

    Raises:
        ValueError: The file holds something else than `shape` and `dtype`, or ends too early.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
        header = file.tell()
    found = (found_shape, str(found_dtype), fortran, path.stat().st_size - header)
    expected = (shape, dtype, False, math.prod(shape) * np.dtype(dtype).itemsize)
    if found != expected:
        raise ValueError(f"{path}: expected (shape, dtype, Fortran order, bytes) {expected}, found {found}")
    if not shape[0]:
        return np.empty(shape, dtype)
    skip = header // np.dtype(dtype).itemsize  # headers are padded to a multiple of 64 bytes
    mapped = torch.from_file(str(path), shared=False, size=skip + math.prod(shape), dtype=getattr(torch, dtype))
    array: NDArray[Any] = mapped[skip:].view(shape).numpy()
    array.flags.writeable = False
    return array
