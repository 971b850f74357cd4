"""Captions and their targets in memory, best on the training device: a batch is drawn there, and a step reads no file.

A small text student on a fast GPU takes its step in less time than Python needs to pad a batch and bring it over.
Tokens and stored embeddings of a whole text set fit on the GPU, 1,000,000 captions of 12 tokens and 512 numbers in
1.1 GB; a set that is too large for it may still fit in main memory.
Shapes: N captions, T tokens in all, B batch, L tokens of the batch's longest caption, D embedding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_distill.batches.datasets import Batch, Captions
from clip_distill.batches.order import Items
from clip_distill.system.processes import available_bytes

SHARE = 0.25  # of what memory is free may be taken by default; the student needs the rest
MAIN_MEMORY = torch.device("cpu")
ROWS_AT_ONCE = 65536


class ResidentCaptions(Dataset[Batch]):
    """The batches of `Captions`, bit for bit, drawn on a device.

    Args:
        captions: Of stored targets, or of none.
        device: Where they are to lie.
    """

    def __init__(self, captions: Captions, device: torch.device) -> None:
        tokens = captions.tokens
        self.captions, self.device = captions, device
        self.lengths = tokens.lengths
        self._flat = torch.from_numpy(tokens.flat.astype(np.int32)).to(device)
        self._starts = torch.from_numpy(tokens.offsets[:-1]).to(device)
        self._lengths = torch.from_numpy(self.lengths).to(device)
        self._targets = targets_of(captions, device)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, items: Items) -> Batch:
        chosen = items[:, 0].copy()
        width = self.captions.width or int(self.lengths[chosen].max(initial=1))  # known here: the device is not asked
        rows = torch.from_numpy(chosen)
        if self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        place = torch.arange(width, device=self.device)
        there = place < self._lengths[rows, None]
        source = (self._starts[rows, None] + place).clamp_(max=len(self._flat) - 1)
        inputs = torch.where(there, self._flat[source].long(), self.captions.pad_id)
        target = None if self._targets is None else self._targets[rows].float()
        return Batch(inputs, target, None, rows)


def targets_of(captions: Captions, device: torch.device) -> Tensor | None:
    """[N, D] on the device, in the store's own precision."""
    store, rows = captions.store, captions.store_rows
    if store is None or rows is None:
        return None
    parts = (rows[first : first + ROWS_AT_ONCE] for first in range(0, len(rows), ROWS_AT_ONCE))
    return torch.cat([torch.from_numpy(store.embeddings(part)).to(device) for part in parts])


def bytes_of(captions: Captions) -> int:
    """What the resident copy takes: tokens, a start and a length of each caption, targets."""
    store = captions.store
    width = 0 if store is None else store.manifest.dim * np.dtype(store.manifest.dtype).itemsize
    return 4 * len(captions.tokens.flat) + (16 + width) * len(captions)


def place_for(
    captions: Captions, device: torch.device, wanted: bool | Literal["auto", "memory"], processes: int = 1
) -> torch.device | None:
    """Where a copy is to lie; None for no copy.

    Args:
        captions: That train.
        device: That trains on them.
        wanted: True for the device, "memory" for main memory; "auto" for the first of the two that has room where a
            GPU trains, and for none where a CPU does, which reads from its cache of files as fast.
        processes: That train on this machine, each with a copy of its own.
    """
    if wanted == "auto" and device.type == "cuda":
        room = {device: torch.cuda.mem_get_info(device)[0], MAIN_MEMORY: available_bytes() // processes}
        return next((place for place, free in room.items() if bytes_of(captions) <= SHARE * free), None)
    return {True: device, "memory": MAIN_MEMORY}.get(wanted)
