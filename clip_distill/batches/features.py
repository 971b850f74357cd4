"""Features: what a student's frozen first stages make of each view, computed once.

They give the same for the same view in every epoch, so they are packed like photos (`batches.packed`), in float16.
Shapes: V views, S image side, s and C side and channels of a feature map.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clip_distill.batches.datasets import Images
from clip_distill.batches.loader import DistillData
from clip_distill.batches.pack import made_from, pack
from clip_distill.batches.packed import Contents
from clip_distill.pixels.views import normalise
from clip_distill.store.arrays import raw
from clip_distill.students.cut import CutBackbone
from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import TowerSpec


class Front:
    """A student's frozen first stages, with the normalisation of pixels before them.

    Args:
        student: A student that `skip_frozen` was called on.
        preprocess: Its own.
    """

    def __init__(self, student: CutBackbone, preprocess: dict[str, Any]) -> None:
        self.parts, self.preprocess = nn.Sequential(*student.parts[: student.done]), preprocess

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [V, 3, S, S] → float16 [V, C, s, s]; what is out of float16's range is cut to it."""
        maps: Tensor = self.parts(normalise(pixels, self.preprocess))
        most = torch.finfo(torch.float16).max
        return maps.clamp(-most, most).half()

    @property
    def digest(self) -> str:
        """Of what it computes: its weights and how many parts it has."""
        result = hashlib.sha256(f"{len(self.parts)}".encode())
        for part in self.parts:
            for name, tensor in part.state_dict().items():
                result.update(name.encode())
                result.update(raw(np.ascontiguousarray(tensor.float().cpu().numpy())))
        return result.hexdigest()


@dataclass(frozen=True)
class Render:
    """Features of a photo's views, as `pack` asks for them; it may be sent to worker processes."""

    front: Front
    images: Images

    def __call__(self, row: int, views: range) -> Tensor:
        return self.front(self.images.render(row, views))


def pack_features(folder: str, spec: TowerSpec, student: nn.Module, data: DistillData) -> None:
    """Have both data sets read from packed features below a folder, made where they are not there yet.

    They are made on the CPU, in one process for each core.

    Args:
        folder: Of both copies.
        spec: What the student is.
        student: What trains; `skip_frozen` was called on it.
        data: What it trains on.

    Raises:
        ValueError: Targets are not stored: every epoch has new views.
        StoreError: The folder holds features of something else, or the disk has not enough room.
    """
    train, val = data.train, data.val
    assert isinstance(student, CutBackbone)
    assert isinstance(train, Images)
    assert isinstance(val, Images)
    if not data.views:
        raise InvalidValue("loader.features: expected stored targets, found --target online, with new views each epoch")
    front = Front(student, spec.preprocess)
    weights = front.digest
    for name, images, views in (("train", train, data.views), ("val", val, 1)):
        blank = torch.zeros(1, 3, images.views.height, images.views.width, dtype=torch.uint8)
        _, channels, height, width = front(blank).shape
        source = {**made_from(images, views), "weights": weights}
        contents = Contents(len(images), views, height, width, source, channels, "float16")

        images.packed = pack(Path(folder) / name, contents, Render(front, images))
