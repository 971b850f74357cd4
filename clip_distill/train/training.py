"""What all trainings share: freezing, averaging and compiling, the optimiser, clipping, checks, recall of all rows.

Shapes: B batch, D embedding, N validation rows.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from clip_distill.evaluation.holdout import HeldOut
from clip_distill.pixels.views import normalise
from clip_distill.recipe import Optimizer, Recipe
from clip_distill.students.layers import drop_words, freeze, recompute, rest, skip_frozen, statistics_kept
from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import TowerSpec
from clip_distill.train.optimizer import lr_factor, make_optimizer
from clip_distill.train.validation import Validation


class Training(L.LightningModule):
    """Trains what is in `student`, one tower or several; the steps are its subclasses'.

    Args:
        student: All that trains.
        objective: The losses.
        optimizer: AdamW and its schedule.
        validation: What recall is measured against.
    """

    def __init__(
        self, student: nn.Module, objective: nn.Module, optimizer: Optimizer, validation: Validation | HeldOut
    ) -> None:
        super().__init__()
        self.objective, self.optimizer_options, self.validation = objective, optimizer, validation
        self.student = student.to(memory_format=torch.channels_last)
        self.average: ModelEmaV3 | None = None
        self._recomputes, self._seed = False, 0
        self.reads_features = False
        self.batch: Any = None  # of the step that is being done
        self._backward = ExitStack()

    def towers(self, of: nn.Module) -> Iterator[tuple[str, TowerSpec, nn.Module]]:
        """Name (empty where there is one tower), spec and module of each tower of `student`, or of its average."""
        raise NotImplementedError

    def prepare(self, recipe: Recipe) -> None:
        """Freeze, recompute, average and compile as the recipe says; once the student has its first weights.

        Raises:
            ValueError: A switch does not fit the student, or there is no compiler.
        """
        self._seed = recipe.seed
        freeze(self.student, recipe.student.freeze)
        if recipe.student.word_dropout:
            drop_words(self.student, recipe.student.word_dropout)
        if recipe.loader.features is not None:
            skip_frozen(self.student)
            self.reads_features = True
        self._recomputes = recipe.checkpointing
        if recipe.checkpointing:
            for _, _, tower in self.towers(self.student):
                recompute(tower)
        if recipe.ema:
            # not Lightning's callback: it averages queues too, and the best checkpoint would lack the average
            self.average = ModelEmaV3(self.student, decay=recipe.ema, use_warmup=True).requires_grad_(False)
        if recipe.compile:
            require_compiler()
            for _, spec, tower in self.towers(self.student):
                tower.compile(dynamic=True if spec.tower == "text" else None)

    @property
    def trained(self) -> nn.Module:
        """What validation measures and a run leaves: the student, or its average."""
        return self.student if self.average is None else self.average.module

    def train(self, mode: bool = True) -> Training:
        super().train(mode)
        rest(self.student)
        if self.average is not None:
            self.average.eval()
        return self

    def embed(self, spec: TowerSpec, tower: nn.Module, inputs: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] of 0 to 255, or what frozen stages made of them, or tokens [B, L] → [B, D]."""
        if spec.tower == "image":
            images = inputs if self.reads_features else normalise(inputs, spec.preprocess)
            inputs = images.to(next(tower.parameters()).dtype)
        embeddings: Tensor = tower(inputs)
        return embeddings

    def loss_of(self, batch: Any, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses on a batch, and each loss before its factor, by its name."""
        raise NotImplementedError

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss, parts = self.loss_of(batch, index)
        self.log_loss(loss, parts)
        return loss

    def log_loss(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Log the sum, and each loss before its factor, every `trainer.log_every_n_steps` and at an epoch's end.

        To look at a number is to wait until a GPU has come to it, so nobody looks at any other step. A loss that is not
        finite stays so, and is found at the next look.

        Raises:
            ValueError: The sum is not a finite number.
        """
        every = getattr(self.trainer, "log_every_n_steps", 0) or math.inf
        due = (self.global_step + 1) % every == 0 or self.trainer.is_last_batch
        if not due and self.device.type != "cpu":
            return
        total, *values = torch.stack([loss.detach(), *(part.detach() for part in parts.values())]).tolist()
        if not math.isfinite(total):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in zip(parts, values, strict=True))
            raise InvalidValue(
                f"the loss is {total} at step {self.global_step} ({shown}). Lower --optimizer.lr, clip "
                "gradients (--trainer.gradient_clip_val 1), or use --trainer.precision bf16-mixed instead of 16-mixed."
            )
        if due:
            self.log("train/loss", total, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in zip(parts, values, strict=True)})

    def log_recall(self, metrics: dict[str, float]) -> None:
        """Log a validation's metrics, on the progress bar too the one by which the best epoch is chosen."""
        chosen = self.validation.measure
        self.log_dict({f"val/{name}": value for name, value in metrics.items() if name != chosen})
        self.log(f"val/{chosen}", metrics[chosen], prog_bar=True)

    @property
    def sees_all(self) -> bool:
        """Whether a validation that ends now has embedded all rows; else there is nothing to rank among."""
        return not (self.trainer.sanity_checking or getattr(self.trainer, "fast_dev_run", False))

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Let what a step draws depend on its place alone, so that a resumed run draws the same."""
        self.batch = batch
        key = [self._seed, *self.place(index)]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        # the same draws; torch's own function writes down a stack trace for CUDA each time, which takes a millisecond
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type != "cpu":
            torch.manual_seed(seed)

    def on_train_batch_end(self, *_: Any) -> None:
        self.batch = None  # the next one needs its memory

    def place(self, index: int) -> tuple[int, int, int]:
        """A step's epoch, batch and process: with the seed, everything that its draws depend on."""
        return self.current_epoch, index, self.global_rank

    def on_before_backward(self, loss: Tensor) -> None:
        if self._recomputes:
            self._backward.enter_context(statistics_kept(self.student))

    def on_after_backward(self) -> None:
        self._backward.close()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.student, self.global_step + 1)

    def gather_rows(self, seen: list[tuple[Tensor, Tensor]], total: int) -> Tensor:
        """[N, D] on the CPU, each row at its place, of all processes.

        Args:
            seen: Rows [B] and embeddings [B, D] of each batch of this process.
            total: N.

        Raises:
            ValueError: Rows are missing; recall among a part of the candidates would look better than it is.
        """
        rows, embeddings = map(torch.cat, zip(*seen, strict=True))
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
        if (there := len(rows.unique())) != total:
            raise InvalidValue(
                f"recall is measured on the whole validation set: expected {total} rows, found {there}. "
                "Leave trainer.limit_val_batches out"
            )
        return whole.cpu()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, with two exceptions.

        Lightning refuses any fused optimiser under mixed precision, bf16 too. And gradients that are short enough are
        left alone on a CPU, where looking at the norm is cheaper than multiplying a whole vocabulary by 1.
        """
        ours = self.device.type == "cpu" or self.trainer.precision == "bf16-mixed"
        if not ours or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # the optimiser has them in a list; to go through a student's modules at every step takes a millisecond
        trained = (each for group in optimizer.param_groups for each in group["params"])
        gradients = {each: each.grad for each in trained if each.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if self.device.type != "cpu" or norm > gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(gradients, gradient_clip_val, norm)

    def on_fit_start(self) -> None:
        if self.average is not None and self.trainer.precision in ("bf16-true", "16-true"):
            raise InvalidValue(
                f"ema: expected weights in float32, which can be averaged; found --trainer.precision "
                f"{self.trainer.precision}. Use bf16-mixed or 16-mixed"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        averaged = any(name.startswith("average.") for name in checkpoint["state_dict"])
        if averaged != (self.average is not None):
            found, wanted = ("one", "without") if averaged else ("none", "with")
            raise InvalidValue(
                f"expected a checkpoint {wanted} an average of the weights (--ema), found {found}. Resume with the "
                "--ema that the run began with, or start it anew with --overwrite"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options = self.optimizer_options
        # fused is fastest, but leaves no moment between unscaling fp16 gradients and the step, at which to clip them
        optimizer = make_optimizer(self.student, options, fused=self.trainer.precision != "16-mixed")
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise InvalidValue(
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
        raise InvalidValue("compile: expected a C++ compiler (g++ or clang++, or one named by CXX), found none")
