"""A tower as a program wants to call it: what the program fixes is met before and after the tower.

Shapes: B batch, S and s sides of the program's images and the tower's, L tokens, C context length, D embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.exports.target import ImageFile, TextFile
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec


class Output(nn.Module):
    """[B, D] → [B, W]: of unit length where the program wants that, and zeros up to its width."""

    def __init__(self, dim: int, width: int, unit: bool) -> None:
        super().__init__()
        self.missing, self.unit = width - dim, unit

    def forward(self, embeddings: Tensor) -> Tensor:
        if self.unit:
            embeddings = F.normalize(embeddings, dim=-1)
        return F.pad(embeddings, (0, self.missing)) if self.missing else embeddings


class ImageGraph(nn.Module):
    """A program's images → embeddings.

    Args:
        spec: Of the tower.
        tower: It.
        file: How the program feeds it.
        output: What is done to the embeddings.
    """

    scale: Tensor
    shift: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, spec: TowerSpec, tower: nn.Module, file: ImageFile, output: Output) -> None:
        super().__init__()
        self.tower, self.output, self.file = tower, output, file
        self.side = sides(spec.preprocess)
        fed = fed_preprocess(spec, file)
        self.resizes = sides(fed) != self.side
        mean, std, their_mean, their_std = (
            torch.tensor(values, dtype=torch.float64)
            for values in (spec.preprocess["mean"], spec.preprocess["std"], fed["mean"], fed["std"])
        )
        # ((x·theirs + their mean) − own mean) / own std
        scale, shift = their_std / std, (their_mean - mean) / std
        self.same = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.float()[:, None, None], persistent=False)
        for name, ours, theirs in zip(("rows", "columns"), self.side, sides(fed), strict=True):
            self.register_buffer(name, resizing(ours, theirs) if self.resizes else None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.file.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        if self.file.dtype == "uint8":
            images = images.float() / 255
        if not self.same:
            images = images * self.scale + self.shift
        if self.resizes:
            images = self.rows @ images @ self.columns.T
        embeddings: Tensor = self.output(self.tower(images))
        return embeddings


def resizing(ours: int, theirs: int) -> Tensor:
    """[s, S]: bicubic resizing of one axis, which is linear: every runtime has products, few have the other."""
    lines = torch.eye(theirs)[None, None]  # of one pixel each
    resized: Tensor = F.interpolate(lines, (ours, theirs), mode="bicubic", antialias=True, align_corners=False)[0, 0]
    return resized


class TextGraph(nn.Module):
    """A program's ids → embeddings, whatever it fills behind the end of a text.

    Args:
        spec: Of the tower.
        tower: It.
        file: How the program feeds it.
        output: What is done to the embeddings.
    """

    def __init__(self, spec: TowerSpec, tower: nn.Module, file: TextFile, output: Output) -> None:
        super().__init__()
        self.tower, self.output = tower, output
        self.context = int(spec.tokenizer["context_length"])
        self.pad, self.end = int(spec.tokenizer["pad_id"]), end_of(spec)
        self.fed = fed_length(spec, file)
        self.whole = not spec.causal  # it must see all C places
        self.kind = torch.int64 if file.dtype == "int64" else torch.int32  # throughout: phones' runtimes lack the other

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.kind)
        if self.end is not None:
            ended = (ids == self.end).to(self.kind)
            behind = ended.cumsum(1, dtype=self.kind) - ended > 0
            ids = torch.where(behind, torch.full_like(ids, self.pad), ids)
        if self.fed is not None and self.fed > self.context:
            ids = self._cut(ids)
        elif self.whole and self.fed != self.context:
            missing = torch.full_like(ids[:, :1], self.pad).expand(-1, self.context)
            ids = torch.cat([ids, missing], dim=1)[:, : self.context]
        embeddings: Tensor = self.output(self.tower(ids))
        return embeddings

    def _cut(self, ids: Tensor) -> Tensor:
        """[B, C]: the first C tokens, with the end of a longer text in the last place."""
        cut = ids[:, : self.context]
        if self.end is None:
            return cut
        kept = (cut == self.end).any(1, keepdim=True)
        last = torch.where(kept, cut[:, -1:], torch.full_like(cut[:, -1:], self.end))
        return torch.cat([cut[:, :-1], last], dim=1)


def end_of(spec: TowerSpec) -> int | None:
    """The token that ends every text; None where there is none."""
    tokens = tokenize(TokenizerSpec(**spec.tokenizer), ["a", "the end"])
    one, other = (tokens.flat[stop - 1] for stop in tokens.offsets[1:])
    return int(one) if one == other else None


def fed_length(spec: TowerSpec, file: TextFile) -> int | None:
    """L that a program always feeds; None where it is free."""
    if file.length == "free":
        return None
    return int(spec.tokenizer["context_length"]) if file.length == "context" else file.length


def fed_preprocess(spec: TowerSpec, file: ImageFile) -> dict[str, Any]:
    """The tower's preprocessing as the program does it: its size, mean and std where it fixes them."""
    own = spec.preprocess | ({"size": file.size} if file.size else {})
    if file.dtype == "uint8":  # the graph divides by 255 and normalises
        return own | {"mean": [0.0] * 3, "std": [1.0] * 3}
    return own | ({"mean": list(file.mean)} if file.mean else {}) | ({"std": list(file.std)} if file.std else {})


def sides(preprocess: dict[str, Any]) -> list[int]:
    """[height, width] of a preprocessed image."""
    return [int(side) for side in np.broadcast_to(preprocess["size"], 2)]
