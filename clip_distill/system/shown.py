"""Commands as a user can paste them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "clip-distill"


def command(*words: object) -> str:
    """A command of this program, called as it was itself: by its path where PATH has no, or another, clip-distill."""
    return f"{_program()} {shlex.join(map(str, words))}"


def _program() -> str:
    called = sys.argv[0] if sys.argv else ""
    if called.endswith("__main__.py"):
        return f"{_found('python', sys.executable)} -m clip_distill"
    return _found(NAME, called) if Path(called).name == NAME else NAME


def _found(name: str, path: str) -> str:
    """The name where PATH leads to this very program, else its path, from here if it lies below."""
    known = shutil.which(name)
    if (
        known is not None
        and os.path.realpath(known) == os.path.realpath(path)
        and Path(known).parent == Path(path).parent
    ):
        return name
    near = os.path.relpath(path)
    return shlex.quote(path if near.startswith("..") else near)


def install(extra: str, *modules: str) -> str:
    """How to install an extra, in brackets, where one of its modules is not there; else nothing."""
    lacking = any(importlib.util.find_spec(module) is None for module in modules)
    return f" (pip install 'clip-distill[{extra}]')" if lacking else ""
