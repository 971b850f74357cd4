"""The training step of two students together: against the teacher, and against each other.

Shapes: B pairs, D embedding, N validation photos, M validation captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from clip_distill.batches.datasets import Batch
from clip_distill.batches.photo_captions import PairBatch
from clip_distill.losses.both import BothSum
from clip_distill.recipe import Optimizer
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec
from clip_distill.train.training import Training
from clip_distill.train.validation import Validation


class BothDistiller(Training):
    """Trains an image and a text student on (photo, caption) pairs; no teacher is in memory.

    Args:
        students: Tower → what it is, and the module; `student` holds both modules by these names.
        objective: Each student's losses, and those between them.
        optimizer: AdamW and its schedule, one for both.
        validation: The image tower's: the teacher's embeddings of photos and of captions, and which belong together.
    """

    def __init__(
        self,
        students: Mapping[Tower, tuple[TowerSpec, nn.Module]],
        objective: BothSum,
        optimizer: Optimizer,
        validation: Validation,
    ) -> None:
        # they come as they are used, not as they are trained
        both = nn.ModuleDict({tower: module for tower, (_, module) in students.items()}).train().requires_grad_(True)
        super().__init__(both, objective, optimizer, validation)
        self._pairs = validation
        self.specs = {tower: spec for tower, (spec, _) in students.items()}
        self._seen: dict[Tower, list[tuple[Tensor, Tensor]]] = {tower: [] for tower in TOWERS}

    def towers(self, of: nn.Module) -> Iterator[tuple[str, TowerSpec, nn.Module]]:
        for tower, spec in self.specs.items():
            yield tower, spec, of.get_submodule(tower)

    def forward(self, inputs: Tensor, tower: Tower) -> Tensor:
        """Pixels [B, 3, S, S] of 0 to 255, or tokens [B, L] → [B, D], by that tower's student.

        In validation by its average, if there is one.
        """
        students = self.student if self.training else self.trained
        return self.embed(self.specs[tower], students.get_submodule(tower), inputs)

    def loss_of(self, batch: PairBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = self(batch.image.inputs, "image").float(), self(batch.text.inputs, "text").float()
        pairs = torch.stack([batch.image.rows, batch.text.rows], dim=1)
        loss, parts = self.objective(image, text, batch.image.target, batch.text.target, pairs)
        return loss, parts

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int) -> None:
        tower = TOWERS[dataloader_idx]  # as `PairData.val_dataloader` has them
        self._seen[tower].append((batch.rows, self(batch.inputs, tower).float()))

    def on_validation_epoch_end(self) -> None:
        seen, self._seen = self._seen, {tower: [] for tower in TOWERS}
        if self.sees_all:
            images = self.gather_rows(seen["image"], len(self._pairs.own))
            captions = self.gather_rows(seen["text"], len(self._pairs.other))
            self.log_recall(self._pairs.metrics_of_both(images, captions))
