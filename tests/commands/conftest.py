"""What the tests of several commands run alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest


@pytest.fixture(scope="session")
def run_alone() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `clip-distill ARGUMENTS` in a process of its own, which may start others; it must succeed."""

    def run(arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "clip_distill.cli", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return run
