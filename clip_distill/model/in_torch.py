"""A tower in torch.

Shapes: B batch, S image side, N texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from clip_distill.evaluation.retrieval import encode_texts
from clip_distill.model.encoder import Floats, Pixels
from clip_distill.pixels.views import normalise
from clip_distill.towers.spec import TowerSpec, pick_device


class TorchEncoder:
    """A tower that runs in torch, on any device.

    Args:
        spec: What the tower is.
        module: The tower, in eval mode.
        device: auto, cpu, cuda, cuda:1, mps; where it runs unless a call names another.
    """

    def __init__(self, spec: TowerSpec, module: nn.Module, device: str = "auto") -> None:
        self.spec, self.module, self.device = spec, module, pick_device(device)
        self.embed_dim, self.teacher, self.preprocess = spec.embed_dim, spec.teacher, spec.preprocess

    def _on(self, device: str | None) -> torch.device:
        chosen = self.device if device is None else pick_device(device)
        self.module.to(chosen)
        return chosen

    @torch.inference_mode()
    def images(self, pixels: Sequence[Pixels], device: str | None) -> Floats:
        chosen = self._on(device)
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(chosen)  # [B, 3, S, S]
        embeddings: Floats = self.module(normalise(batch, self.preprocess)).float().cpu().numpy()
        return embeddings

    def for_threads(self) -> None:
        return None  # torch has its own threads in each call, or a GPU has

    def texts(self, texts: Sequence[str], batch_size: int, device: str | None) -> Floats:
        chosen = self._on(device)
        embeddings: Floats = encode_texts(self.spec, self.module, list(texts), chosen, batch_size).numpy()
        return embeddings
