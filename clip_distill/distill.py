"""The training step: a student's embedding against the teacher's, and nothing else.

Shapes: B batch, D embedding, N validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from clip_distill.data.module import Batch
from clip_distill.data.views import normalise
from clip_distill.losses import WeightedSum
from clip_distill.recipe import Optimizer
from clip_distill.towers import TowerSpec
from clip_distill.validation import Validation

Teach = Callable[[Tensor], Tensor]


class Distiller(L.LightningModule):
    """Trains `student`; its checkpoints hold the student alone (and the queue of `queue_kl`).

    Args:
        spec: What the student is.
        student: The tower, pixels or tokens → [B, D].
        objective: The losses.
        optimizer: AdamW and its schedule.
        validation: What recall is measured against.
        teach: The teacher's pixels or tokens → [B, D], for online targets. A function, not a module, so that no
            optimiser, checkpoint or train() ever reaches the teacher.
    """

    def __init__(
        self,
        spec: TowerSpec,
        student: nn.Module,
        objective: WeightedSum,
        optimizer: Optimizer,
        validation: Validation,
        teach: Teach | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.objective, self.optimizer_options = spec, objective, optimizer
        self.student = student.to(memory_format=torch.channels_last)
        self.validation, self.teach = validation, teach
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """uint8 pixels [B, 3, S, S] or tokens [B, L] → [B, D]."""
        if self.spec.tower == "image":
            inputs = normalise(inputs, self.spec.preprocess)
        embeddings: Tensor = self.student(inputs)
        return embeddings

    def target(self, batch: Batch) -> Tensor:
        """[B, D] of the teacher: stored, or computed now where it runs online."""
        if self.teach is None:
            assert batch.target is not None
            return batch.target
        assert batch.teacher_inputs is not None
        return self.teach(batch.teacher_inputs)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss, parts = self.objective(self(batch.inputs).float(), self.target(batch))
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {part.item():.4g}" for name, part in parts.items())
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step} ({values}). Lower --optimizer.lr, clip "
                "gradients (--trainer.gradient_clip_val 1), or use --trainer.precision bf16-mixed instead of 16-mixed."
            )
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": part for name, part in parts.items()})
        return loss

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = asdict(self.spec)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options = self.optimizer_options
        groups = parameter_groups(self.student, options.weight_decay)
        # fused is fastest, but leaves no moment between unscaling fp16 gradients and the step, at which to clip them
        fused = self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, fused=fused)
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError(
                "the learning rate's schedule needs an end: expected trainer.max_epochs or max_steps, found neither"
            )
        epoch_steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        factor = lr_factor(options, int(total), max(1, epoch_steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and token embeddings with decay; norms, biases, position tables and class tokens without.

    Position tables and class tokens are what a tower, or a timm model within it, names in its `no_weight_decay()`.
    """
    spared = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, part in module.named_modules()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim >= 2 and name not in spared]
    plain = [p for name, p in trained if p.ndim < 2 or name in spared]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def lr_factor(options: Optimizer, total: int, epoch_steps: int) -> Callable[[int], float]:
    """Step → share of the peak learning rate: linear warm-up, then the schedule.

    Args:
        options: Warm-up and schedule.
        total: Steps of the whole run.
        epoch_steps: Steps of an epoch.
    """
    warmup = round(options.warmup * total) if options.warmup < 1 else round(options.warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if options.schedule == "constant":
            return 1.0
        if options.schedule == "step":
            return float(options.step_gamma ** (step // epoch_steps // options.step_epochs))
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return options.min_lr + (1 - options.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
