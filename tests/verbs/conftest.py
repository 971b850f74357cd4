"""What the tests of several commands run alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import pytest
import yaml


class StopAt(L.Callback):
    """Ends the run as a crash would, after a number of steps, of which the last is saved where a folder is given."""

    def __init__(self, step: int, folder: str | None = None) -> None:
        self.step, self.folder = step, folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            if self.folder is not None:
                trainer.save_checkpoint(Path(self.folder) / "last.ckpt")
            raise RuntimeError("stopped by the test")


@pytest.fixture(scope="session")
def stop_at() -> Callable[..., str]:
    """A flag of `fit` with which a run ends in `RuntimeError("stopped by the test")`: `StopAt`'s arguments → flag."""

    def flag(step: int, folder: Path | None = None) -> str:
        arguments = {"step": step} | ({} if folder is None else {"folder": str(folder)})
        return f"--trainer.callbacks+={yaml.safe_dump({'class_path': f'{__name__}.StopAt', 'init_args': arguments})}"

    return flag


@pytest.fixture(scope="session")
def run_alone() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `clip-distill ARGUMENTS` in a process of its own, which may start others; it must succeed."""

    def run(arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "clip_distill", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return run
