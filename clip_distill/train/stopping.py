"""What a run leaves when it is stopped: checkpoints that are whole, and one of the step at which a signal came."""

from __future__ import annotations

import io
import signal
import threading
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import write_bytes
from clip_distill.system.paths import is_url

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it, and renames it.

    Lightning's own is written to the temporary folder, and copied over the old one where that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if is_url(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getbuffer())


def require_whole(last: Path) -> None:
    """
    Raises:
        InvalidValue: A checkpoint is cut or damaged; the message offers the best one.
    """
    best = last.with_name("best.ckpt")
    try:
        with zipfile.ZipFile(last) as found:
            damaged = found.testzip() is not None
    except zipfile.BadZipFile:
        damaged = True
    if damaged:
        rest = "--overwrite true begins anew"
        if best.is_file() and best != last:
            rest = f"--resume best goes on from the weights of {best}, with a schedule that begins anew; {rest}"
        raise InvalidValue(f"{last}: expected a whole checkpoint, found one that is cut or damaged. {rest}")


class Stopped(BaseException):
    """A signal ended a training between two steps, after its checkpoint was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopAtSignal(Checkpoint):
    """At Ctrl-C or SIGTERM the step, or the validation, is finished, a checkpoint saved, and the training left.

    A second signal ends the program at once. Lightning's own way would save nothing, or stop amid a step.

    Args:
        last: Where the checkpoint goes.
    """

    def __init__(self, last: Path) -> None:
        self.last, self.found = last, 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            heard = [
                number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
            ]  # nohup, a shell's &
            self._before = {number: signal.signal(number, self._note) for number in heard}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.found = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._leave(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._leave(trainer, save=False)  # the epoch's own checkpoint is there

    def _leave(self, trainer: Trainer, save: bool) -> None:
        found = self.found
        if trainer.world_size > 1:  # all leave at the same step, whichever was told
            reduced: Any = trainer.strategy.reduce(
                torch.tensor(found, device=trainer.strategy.root_device), reduce_op="max"
            )
            found = int(reduced)
        if found:
            if save:
                trainer.save_checkpoint(self.last)
            raise Stopped(found)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
