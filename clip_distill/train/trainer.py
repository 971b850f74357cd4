"""Lightning's Trainer as `fit` sets it up: checkpoints, logs, and what a run cost."""

from __future__ import annotations

import logging
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger

from clip_distill.batches.datasets import Batch
from clip_distill.system.allocator import forget_peak, most_resident_bytes
from clip_distill.system.talk import EVERY, is_quiet, loudness, on_terminal, say
from clip_distill.train.logs import CsvLog, TensorBoardLog
from clip_distill.train.stopping import StopAtSignal, WholeCheckpoints

if TYPE_CHECKING:
    from clip_distill.recipe import Recipe

SAVE_EVERY = timedelta(minutes=10)


def quiet_lightning(entirely: bool = False) -> None:
    """Leave out what Lightning says of itself, and advice that was weighed here already; `--verbose` brings it back.

    Args:
        entirely: Its warnings too, for a training that stands in for the real one.
    """
    if (loudness() or logging.INFO) < logging.INFO:
        return
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR if entirely else logging.WARNING)
    if entirely:
        warnings.filterwarnings("ignore", module=r"lightning")
    for message in (
        r".*LeafSpec",
        r"The number of training batches",
        r".*does not have many workers",
        r"Checkpoint directory .* exists and is not empty",  # a run that goes on
        r"Found \d+ module\(s\) in eval mode",  # what is frozen, and the average
        r"It is recommended to use `self\.log",  # of processes, which have the same recall: of all rows
    ):
        warnings.filterwarnings("ignore", message, module=r"lightning\.")


def make_trainer(
    recipe: Recipe, options: dict[str, Any], out: Path, measure: str = "mean_recall"
) -> tuple[Trainer, ModelCheckpoint, Cost]:
    """Lightning's Trainer with the recipe's options; loggers and checkpoints, the best by `measure`, below `out`."""
    folder = out / "checkpoints"
    # recall on the whole validation set chooses; in-batch accuracy would change with the batch size
    best = ModelCheckpoint(
        folder, "best", monitor=f"val/{measure}", mode="max", save_weights_only=True, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    # an epoch may take hours: a kill should not cost more than this
    between = ModelCheckpoint(folder, "last", train_time_interval=SAVE_EVERY, enable_version_counter=False)
    cost = Cost()
    callbacks: list[Callback] = [cost, best, last, between, StopAtSignal(folder / "last.ckpt")]
    # the CSV logger empties its folder, so a resumed run logs beside what is there
    version = f"resumed-{len(list((out / 'logs').glob('resumed-*'))) + 1}" if recipe.resume else ""
    loggers: list[Logger] = [CsvLog(out, "logs", version), TensorBoardLog(out, "logs", version)]
    if recipe.wandb:
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(project=recipe.wandb, save_dir=out, name=out.name))
    if options.get("logger") not in (None, True):
        loggers = options["logger"]
    bar = options.get("enable_progress_bar") is not False and not is_quiet()
    if bar:
        # each time it is drawn it asks for the loss, for which a GPU's queue must end
        refresh_rate = max(1, options.get("log_every_n_steps") or 1)
        callbacks.append(RichProgressBar(refresh_rate) if on_terminal() else Lines())
    if loggers and not options.get("fast_dev_run"):
        callbacks.append(LearningRateMonitor("step"))
    given = options.get("callbacks") or []
    callbacks += given if isinstance(given, list) else [given]
    plugins = options.get("plugins") or []
    plugins = [WholeCheckpoints(), *(plugins if isinstance(plugins, list) else [plugins])]
    own = {"callbacks": callbacks, "logger": loggers, "plugins": plugins, "use_distributed_sampler": False}
    trainer = Trainer(**{**options, **own, "enable_progress_bar": bar and on_terminal()})
    return trainer, best, cost


class Lines(Callback):
    """In a bar's place, where none can be drawn: a line every ten seconds, and one an epoch."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        if time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            say(
                f"{self._place(trainer)}, step {index + 1:,} of {trainer.num_training_batches:,}{self._values(trainer)}"
            )

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._said = time.monotonic()
        say(f"{self._place(trainer)}{self._values(trainer)}")

    def _place(self, trainer: Trainer) -> str:
        of = f" of {trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        return f"epoch {trainer.current_epoch + 1}{of}"

    def _values(self, trainer: Trainer) -> str:
        """The loss, and the recall of the last validation if there was one; what a bar shows as well."""
        shown = {"train/loss": "loss {:.4f}", "val/mean_recall": "mean recall {:.1f} %"}
        shown |= {"val/agreement": "agreement {:.1f} %"}
        there = trainer.progress_bar_metrics
        return "".join(f", {text.format(float(there[name]))}" for name, text in shown.items() if name in there)


class Cost(Callback):
    """Samples per second of training, loading included and validation left out, and peak memory; logged every epoch.

    Attributes:
        samples: Of all processes.
        seconds: In which they were trained on.
    """

    def __init__(self) -> None:
        self.samples, self.seconds = 0, 0.0
        self._start_bytes = 0
        self._since, self._pending = 0.0, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        forget_peak()  # of a teacher that is gone
        self._start_bytes = int(psutil.Process().memory_info().rss)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        self._pending += len(batch.rows) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._count()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._count()
        module.log("train/samples_per_second", self.samples / max(self.seconds, 1e-9), rank_zero_only=True)
        module.log("train/seconds", self.seconds, rank_zero_only=True)
        module.log("train/peak_memory_mb", self._peak_bytes() / 1e6, rank_zero_only=True)

    def _count(self) -> None:
        if self._pending:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.samples += self._pending
            self.seconds += time.perf_counter() - self._since
            self._pending = 0

    def _peak_bytes(self) -> int:
        return most_resident_bytes()

    def __str__(self) -> str:
        peak = self._peak_bytes()
        gpu = f", {torch.cuda.max_memory_allocated() / 1e6:,.0f} MB on the GPU" if torch.cuda.is_available() else ""
        return (
            f"trained at {self.samples / max(self.seconds, 1e-9):,.0f} samples/s (validation left out); peak memory "
            f"{peak / 1e6:,.0f} MB, {max(0, peak - self._start_bytes) / 1e6:,.0f} MB of it for training{gpu}"
        )
