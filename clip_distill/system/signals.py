"""The signal stack of a thread, kept as it is while a foreign library is at work."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SignalStack(ctypes.Structure):
    """`stack_t` of Linux: where signal handlers run."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int, int]:
    """Address, flags and bytes of this thread's; flags are 2 where there is none."""
    stack = SignalStack()
    _library().sigaltstack(None, ctypes.byref(stack))
    return stack.address or 0, stack.flags, stack.size


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Give this thread its signal stack back afterwards.

    OpenVINO sets one of its own where a CPU has AMX, and frees it with its last model. Done in another thread, that
    leaves this one without any: the next signal, a child's end for instance, kills the process without a word.
    """
    if sys.platform != "linux":
        yield
        return
    library, stack = _library(), SignalStack()
    library.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(stack), None)


def _library() -> Any:
    return ctypes.CDLL(None)
