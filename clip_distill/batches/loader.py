"""Loaders for training and validation, which know their place within an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from clip_distill.batches.datasets import Batch, Captions, Images
from clip_distill.batches.order import EpochBatches, InOrder
from clip_distill.batches.photo_captions import PhotoCaptions
from clip_distill.batches.resident import ResidentCaptions, bytes_of, place_for
from clip_distill.batches.workers import measure
from clip_distill.system.cores import default_workers
from clip_distill.system.errors import InvalidValue
from clip_distill.system.feed import Feed
from clip_distill.system.talk import say

DRAWN_HERE = {"num_workers": 0, "persistent_workers": False}  # from memory, faster than another process brings it


class ResumableLoader(Feed[Batch]):
    """A loader that knows its place within an epoch.

    It follows Lightning's `state_dict` protocol; but Lightning 2.6 does not hand the state back where a schedule asked
    for the number of steps first, so `DistillData` saves and restores the same place as well.
    """

    sampler: EpochBatches
    yielded = 0
    device = torch.device("cpu")

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch's own iterator type is private
        self.yielded = self.sampler.skip
        batches = super().__iter__()
        for batch in batches if self.device.type != "cuda" else copied_ahead(batches, self.device):
            self.yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.yielded % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.skip = state["batches"]


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device: each is copied from pinned memory, beside the step on the one before it."""
    beside = torch.cuda.Stream(device)

    def copied() -> Batch | None:
        batch = next(batches, None)
        with torch.cuda.stream(beside):
            return None if batch is None else move_data_to_device(batch, device)

    batch = copied()
    while batch is not None:
        step = torch.cuda.current_stream(device)
        step.wait_stream(beside)
        for each in tree_leaves(batch):
            if isinstance(each, torch.Tensor):
                each.record_stream(step)  # its memory is not to be taken while the step reads it
        yield batch
        batch = copied()


@dataclass(frozen=True)
class LoaderOptions:
    """Batch sizes, the number of worker processes (None has it measured), and where captions lie."""

    batch_size: int
    val_batch_size: int
    workers: int | None = None
    resident: bool | Literal["auto", "memory"] = "auto"

    def __post_init__(self) -> None:
        if min(self.batch_size, self.val_batch_size) < 1 or (self.workers or 0) < 0:
            raise InvalidValue(f"expected batch sizes of 1 or more and 0 or more workers, found {self}")


class DistillData(L.LightningDataModule):
    """The two loaders.

    Args:
        train: Training dataset.
        val: Validation dataset, one row per photo or unique caption.
        views: Stored views to choose from; 0 for a fresh one each epoch.
        options: Batch sizes and workers.
        seed: Of the batch order.
        drawn: As of `EpochBatches`.
    """

    _resides = True

    def __init__(
        self,
        train: Images | Captions | PhotoCaptions,
        val: Images | Captions,
        views: int,
        options: LoaderOptions,
        seed: int,
        drawn: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.drawn = drawn
        self.train, self.val, self.views, self.options, self.seed = train, val, views, options, seed
        self._loader: ResumableLoader | None = None
        self._restored = {"batches": 0}
        self._workers = options.workers
        self._copies: dict[Captions, ResidentCaptions | None] = {}

    def order(self) -> EpochBatches:
        size, lengths = self.options.batch_size, lengths_of(self.train)
        return EpochBatches(len(self.train), size, self.views, self.seed, *self._place(), lengths, self.drawn)

    def train_dataloader(self) -> ResumableLoader:
        placed, arguments = self._placed(self.train, self._loader_arguments())
        self._loader = ResumableLoader(placed, sampler=self.order(), **arguments)
        if not self._lies_there(placed):
            self._loader.device = self._device()
        self._loader.load_state_dict(self._restored)
        self._restored = {"batches": 0}  # of one epoch alone, should Lightning ask for another loader
        return self._loader

    def state_dict(self) -> dict[str, int]:
        return self._loader.state_dict() if self._loader is not None else self._restored

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._restored = state

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self.in_order(self.val, self._loader_arguments())

    def in_order(self, rows: Images | Captions, arguments: dict[str, Any]) -> DataLoader[Batch]:
        """A loader of a validation set."""
        sampler = InOrder(len(rows), self.options.val_batch_size, *self._place(), lengths_of(rows))
        placed, arguments = self._placed(rows, arguments)
        return Feed(placed, sampler=sampler, **arguments)

    def _placed(
        self, rows: Images | Captions | PhotoCaptions, arguments: dict[str, Any]
    ) -> tuple[Dataset[Any], dict[str, Any]]:
        """A data set, or its copy in memory, which is made once; and the loader's arguments for it."""
        if not (self._resides and isinstance(rows, Captions) and rows.teacher_tokens is None):
            return rows, arguments
        if rows not in self._copies:
            processes = 1 if self.trainer is None else self.trainer.num_devices
            place = place_for(rows, self._device(), self.options.resident, processes)
            self._copies[rows] = None if place is None else ResidentCaptions(rows, place)
            if place is not None and rows is self.train:
                say(f"loader: {len(rows):,} captions lie on {place}, {bytes_of(rows) / 1e6:,.1f} MB")
        copy = self._copies[rows]
        if copy is None:
            return rows, arguments
        return copy, arguments | DRAWN_HERE | {"pin_memory": arguments["pin_memory"] and not self._lies_there(copy)}

    def _lies_there(self, rows: Dataset[Any]) -> bool:
        """Whether a data set is on the training device, so that no batch is copied to it."""
        return isinstance(rows, ResidentCaptions) and rows.device == self._device()

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader_arguments(self) -> dict[str, Any]:
        if self._workers is None:
            self._workers = self.chosen_workers()
        return {
            "batch_size": None,  # a dataset's item is a batch already
            "num_workers": self._workers,
            "persistent_workers": self._workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def chosen_workers(self) -> int:
        train = self.train
        # a packed photo comes from memory or a disk: only a GPU takes more than one process can bring
        if not isinstance(train, Images) or (train.packed is not None and self._device().type != "cuda"):
            return 0
        if self.trainer is None:
            return default_workers()
        choice = measure(train, 0 if self.views == 1 else 1, self.options.batch_size, self.trainer)
        say(str(choice))
        return choice.workers


def lengths_of(dataset: Images | Captions | PhotoCaptions) -> NDArray[np.int64] | None:
    """[N] tokens of each caption; None for photos, and pairs."""
    return dataset.tokens.lengths if isinstance(dataset, Captions) else None


class PairData(DistillData):
    """The loader of pairs, and two for validation: of all photos, and of all captions.

    Pairs are not batched by their captions' length, as captions alone are: the photos cost more than the padding, and
    losses between the pairs of a batch want it to be a random one.

    Args:
        train: Pairs.
        val: Validation photos, and unique validation captions.
        views: Stored views to choose from.
        options: Batch sizes and workers.
        seed: Of the batch order.
    """

    _resides = False  # its photos come from the CPU, so its captions do, too

    def __init__(
        self, train: PhotoCaptions, val: tuple[Images, Captions], views: int, options: LoaderOptions, seed: int
    ) -> None:
        super().__init__(train, val[0], views, options, seed)
        self._photos, self._val = train.images, val

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        photos, captions = self._val
        arguments = self._loader_arguments()
        no_workers = {"num_workers": 0, "persistent_workers": False}  # tokens are there already
        return [self.in_order(photos, arguments), self.in_order(captions, arguments | no_workers)]

    def chosen_workers(self) -> int:
        return 0 if self._photos.packed is not None else default_workers()
