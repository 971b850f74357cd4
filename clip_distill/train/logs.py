"""Lightning's loggers, whose failed writes say what to do, and hide no other error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from clip_distill.system.files import not_written
from clip_distill.system.talk import say

KEPT = "The last checkpoint is kept, and --resume goes on from it"


class _Told:
    """What both loggers share, before Lightning's class."""

    log_dir: Any

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_written(Path(self.log_dir), error, KEPT) from error

    @property
    def experiment(self) -> Any:
        with self._writing():
            return super().experiment  # type: ignore[misc]  # of the class after this one

    def log_metrics(self, *args: Any, **options: Any) -> None:
        with self._writing():
            super().log_metrics(*args, **options)  # type: ignore[misc]

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        with self._writing():
            super().log_hyperparams(*args, **options)  # type: ignore[misc]

    def save(self) -> None:
        with self._writing():
            super().save()  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        """Lightning calls this for a run that failed, too: an error of the disk is not to take the place of its own."""
        try:
            super().finalize(status)  # type: ignore[misc]
        except OSError as error:
            say(f"{self.log_dir}: the last lines are missing: {error}")


class CsvLog(_Told, CSVLogger):
    """`logs/metrics.csv`."""


class TensorBoardLog(_Told, TensorBoardLogger):
    """TensorBoard's events, beside it."""
