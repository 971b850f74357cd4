"""Which file a worker process is at, for the message should it die or stay there; torch is not needed."""

from __future__ import annotations

import os
from ctypes import Array, c_char
from multiprocessing.sharedctypes import RawArray

NOTE_BYTES = 1024
Note = Array[c_char]
_mine: Note | None = None


def new_note() -> Note:
    """Memory that a process shares with the workers that it starts, for one of them to write down where it is."""
    return RawArray(c_char, NOTE_BYTES)


def begin(note: Note) -> None:
    """Let this process write to a note from now on."""
    global _mine
    _mine = note
    at("")


def at(path: str) -> None:
    """Write down that this process, if it is a worker, begins with a file."""
    if _mine is not None:
        _mine.value = f"{os.getpid()} {path}".encode(errors="replace")[: NOTE_BYTES - 1]


def read(note: Note) -> tuple[int, str]:
    """A worker's process number and the file that it began with last; 0 and nothing before it has started."""
    number, _, path = note.value.decode(errors="replace").partition(" ")
    return int(number or 0), path
