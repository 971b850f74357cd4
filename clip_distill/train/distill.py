"""The training step of one tower: a student's embedding against the teacher's, and nothing else.

Shapes: B batch, D embedding, N validation rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from clip_distill.batches.datasets import Batch
from clip_distill.batches.mixup import mix
from clip_distill.evaluation.holdout import HeldOut
from clip_distill.losses import WeightedSum
from clip_distill.recipe import Optimizer, Recipe
from clip_distill.towers.spec import TowerSpec
from clip_distill.train.training import Training
from clip_distill.train.validation import Validation

Teach = Callable[[Tensor], Tensor]
Draw = Callable[..., Tensor]


class Distiller(Training):
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
        validation: Validation | HeldOut,
        teach: Teach | None = None,
        pairs: Draw | None = None,
    ) -> None:
        super().__init__(student, objective, optimizer, validation)
        self.spec, self.teach, self.pairs = spec, teach, pairs
        self._mixup = 0.0
        self._seen: list[tuple[Tensor, Tensor]] = []

    def towers(self, of: nn.Module) -> Iterator[tuple[str, TowerSpec, nn.Module]]:
        yield "", self.spec, of

    def prepare(self, recipe: Recipe) -> None:
        self._mixup = recipe.mixup
        super().prepare(recipe)

    def forward(self, inputs: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] of 0 to 255, or what frozen stages made of them, or tokens [B, L] → [B, D].

        In validation by the average, if there is one.
        """
        return self.embed(self.spec, self.student if self.training else self.trained, inputs)

    def target(self, batch: Batch) -> Tensor:
        """[B, D] of the teacher: stored, or computed now where it runs online."""
        if self.teach is None:
            assert batch.target is not None
            return batch.target
        assert batch.teacher_inputs is not None
        return self.teach(batch.teacher_inputs)

    def loss_of(self, batch: Batch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self._mixup:
            batch = mix(batch, self._mixup, [self._seed, *self.place(index)])
        pair = None if self.pairs is None else self.pairs(batch.rows, *self.place(index))
        loss, parts = self.objective(self(batch.inputs).float(), self.target(batch), pair)
        return loss, parts

    def validation_step(self, batch: Batch, index: int) -> None:
        self._seen.append((batch.rows, self(batch.inputs).float()))

    def on_validation_epoch_end(self) -> None:
        seen, self._seen = self._seen, []
        if self.sees_all:
            self.log_recall(self.validation.metrics(self.gather_rows(seen, len(self.validation.own))))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = asdict(self.spec)
