"""The training step: a student's embedding against the teacher's, and nothing else.

Shapes: B batch, D embedding, N validation rows.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from clip_distill.data.mixup import mix
from clip_distill.data.module import Batch
from clip_distill.data.views import normalise
from clip_distill.losses import WeightedSum
from clip_distill.optim import lr_factor, make_optimizer
from clip_distill.recipe import Optimizer, Recipe
from clip_distill.students.layers import freeze, recompute, rest, skip_frozen, statistics_kept
from clip_distill.towers import TowerSpec
from clip_distill.validation import Validation

Teach = Callable[[Tensor], Tensor]
Draw = Callable[..., Tensor]


class Distiller(L.LightningModule):
    """Trains `student`; its checkpoints hold the student alone (its average beside it, and the queue of `queue_kl`).

    Args:
        spec: What the student is.
        student: The tower, pixels or tokens → [B, D].
        objective: The losses.
        optimizer: AdamW and its schedule.
        validation: What recall is measured against.
        teach: The teacher's pixels or tokens → [B, D], for online targets. A function, not a module, so that no
            optimiser, checkpoint or train() ever reaches the teacher.
        pairs: Rows [B] and whole numbers to draw by → [B, D] of what they are paired with, for losses that need it.
    """

    def __init__(
        self,
        spec: TowerSpec,
        student: nn.Module,
        objective: WeightedSum,
        optimizer: Optimizer,
        validation: Validation,
        teach: Teach | None = None,
        pairs: Draw | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.objective, self.optimizer_options = spec, objective, optimizer
        self.student = student.to(memory_format=torch.channels_last)
        self.validation, self.teach, self.pairs = validation, teach, pairs
        self.average: ModelEmaV3 | None = None
        self._mixup, self._seed = 0.0, 0
        self._recomputes = False
        self.reads_features = False
        self._backward = ExitStack()
        self._seen: list[tuple[Tensor, Tensor]] = []

    def prepare(self, recipe: Recipe) -> None:
        """Freeze, recompute, average, mix and compile as the recipe says; once the student has its first weights.

        Raises:
            ValueError: A switch does not fit the student, or there is no compiler.
        """
        freeze(self.student, recipe.student.freeze)
        if recipe.loader.features is not None:
            skip_frozen(self.student)
            self.reads_features = True
        self._mixup, self._seed = recipe.mixup, recipe.seed
        self._recomputes = recipe.checkpointing
        if recipe.checkpointing:
            recompute(self.student)
        if recipe.ema:
            # not Lightning's callback: it averages queues too, and the best checkpoint would lack the average
            self.average = ModelEmaV3(self.student, decay=recipe.ema, use_warmup=True).requires_grad_(False)
        if recipe.compile:
            require_compiler()
            self.student.compile(dynamic=True if self.spec.tower == "text" else None)

    @property
    def trained(self) -> nn.Module:
        """What validation measures and a run leaves: the student, or its average."""
        return self.student if self.average is None else self.average.module

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        rest(self.student)
        if self.average is not None:
            self.average.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] of 0 to 255, or what frozen stages made of them, or tokens [B, L] → [B, D].

        In validation by the average, if there is one.
        """
        tower = self.student if self.training else self.trained
        if self.spec.tower == "image":
            images = inputs if self.reads_features else normalise(inputs, self.spec.preprocess)
            inputs = images.to(next(tower.parameters()).dtype)
        embeddings: Tensor = tower(inputs)
        return embeddings

    def target(self, batch: Batch) -> Tensor:
        """[B, D] of the teacher: stored, or computed now where it runs online."""
        if self.teach is None:
            assert batch.target is not None
            return batch.target
        assert batch.teacher_inputs is not None
        return self.teach(batch.teacher_inputs)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self._mixup:
            batch = mix(batch, self._mixup, [self._seed, self.current_epoch, index, self.global_rank])
        place = (self.current_epoch, index, self.global_rank)
        pair = None if self.pairs is None else self.pairs(batch.rows, *place)
        loss, parts = self.objective(self(batch.inputs).float(), self.target(batch), pair)
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {part.item():.4g}" for name, part in parts.items())
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step} ({values}). Lower --optimizer.lr, clip "
                "gradients (--trainer.gradient_clip_val 1), or use --trainer.precision bf16-mixed instead of 16-mixed."
            )
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": part for name, part in parts.items()})
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        if self._recomputes:
            self._backward.enter_context(statistics_kept(self.student))

    def on_after_backward(self) -> None:
        self._backward.close()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.student, self.global_step + 1)

    def validation_step(self, batch: Batch, index: int) -> None:
        self._seen.append((batch.rows, self(batch.inputs).float()))

    def on_validation_epoch_end(self) -> None:
        rows, embeddings = map(torch.cat, zip(*self._seen, strict=True))
        self._seen.clear()
        if self.trainer.sanity_checking or getattr(self.trainer, "fast_dev_run", False):
            return  # a few batches only: nothing to rank among
        student = self._gather(rows, embeddings).cpu()
        metrics = {f"val/{name}": value for name, value in self.validation.metrics(student).items()}
        self.log_dict({name: value for name, value in metrics.items() if name != "val/mean_recall"})
        self.log("val/mean_recall", metrics["val/mean_recall"], prog_bar=True)

    def _gather(self, rows: Tensor, embeddings: Tensor) -> Tensor:
        """[N, D] of all processes, each row at its place.

        Raises:
            ValueError: Rows are missing; recall among a part of the candidates would look better than it is.
        """
        total = len(self.validation.own)
        if self.trainer.world_size > 1:
            # processes may differ by one row: repeat the last, which lands on the same place twice
            most = -(-total // self.trainer.world_size)
            short = most - len(rows)
            rows = torch.cat([rows, rows[-1:].expand(short)])
            embeddings = torch.cat([embeddings, embeddings[-1:].expand(short, -1)])
            gathered: list[Any] = [
                self.all_gather(rows),
                self.all_gather(embeddings),
            ]  # [world, most], [world, most, D]
            rows, embeddings = (each.flatten(0, 1) for each in gathered)
        whole = embeddings.new_zeros(total, embeddings.shape[1])
        whole[rows] = embeddings
        if (seen := len(rows.unique())) != total:
            raise ValueError(
                f"recall is measured on the whole validation set: expected {total} rows, found {seen}. "
                "Leave trainer.limit_val_batches out"
            )
        return whole

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, except that Lightning refuses any fused optimiser under mixed precision, bf16 too."""
        if self.trainer.precision == "bf16-mixed" and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        if self.average is not None and self.trainer.precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"ema: expected weights in float32, which can be averaged; found --trainer.precision "
                f"{self.trainer.precision}. Use bf16-mixed or 16-mixed"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = asdict(self.spec)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        averaged = any(name.startswith("average.") for name in checkpoint["state_dict"])
        if averaged != (self.average is not None):
            found, wanted = ("one", "without") if averaged else ("none", "with")
            raise ValueError(
                f"expected a checkpoint {wanted} an average of the weights (--ema), found {found}. Resume with the "
                "--ema that the run began with, or start it anew with --overwrite"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options = self.optimizer_options
        # fused is fastest, but leaves no moment between unscaling fp16 gradients and the step, at which to clip them
        optimizer = make_optimizer(self.student, options, fused=self.trainer.precision != "16-mixed")
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError(
                "the learning rate's schedule needs an end: expected trainer.max_epochs or max_steps, found neither"
            )
        if math.isinf(self.trainer.num_training_batches):  # with max_steps alone, nobody has asked for the loader yet
            self.trainer.fit_loop.setup_data()
        epoch_steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        factor = lr_factor(options, int(total), max(1, epoch_steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def require_compiler() -> None:
    """torch.compile makes C++ on a CPU, and says so only at the first step.

    Raises:
        ValueError: No C++ compiler is found.
    """
    candidates = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    if not torch.cuda.is_available() and not any(shutil.which(each) for each in candidates if each):
        raise ValueError("compile: expected a C++ compiler (g++ or clang++, or one named by CXX), found none")
