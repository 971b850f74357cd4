"""Captions as tokens, stored ragged: one flat array and offsets, never N×77.

Shapes: N captions, T tokens in all, L tokens of the longest row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_distill.system.errors import InvalidValue

ROWS_AT_ONCE = 65536  # captions copied at a time


@dataclass(frozen=True)
class Ragged:
    """N rows of tokens, end to end: row i is `flat[offsets[i]:offsets[i + 1]]`.

    Args:
        flat: [T], uint16 where the vocabulary allows it, else uint32.
        offsets: [N + 1], int64.
    """

    flat: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each row."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """The given rows, in the given order."""
        offsets = starts(self.offsets[rows + 1] - self.offsets[rows])
        flat = np.empty(offsets[-1], self.flat.dtype)
        for first in range(0, len(rows), ROWS_AT_ONCE):  # a token's place takes 24 bytes on the way
            chosen, places = rows[first : first + ROWS_AT_ONCE], offsets[first : first + ROWS_AT_ONCE + 1]
            lengths = np.diff(places)
            start, end = int(places[0]), int(places[-1])
            flat[start:end] = self.flat[np.repeat(self.offsets[chosen] - places[:-1], lengths) + np.arange(start, end)]
        return Ragged(flat, offsets)

    def pad(self, pad_id: int, length: int | None = None) -> Tensor:
        """int64 [N, L]; L is the longest row, or `length`, which every row must fit."""
        longest = int(self.lengths.max(initial=1))
        width = longest if length is None else length
        if longest > width:
            raise InvalidValue(f"a caption has {longest} tokens and does not fit a width of {width}")
        dense = np.full((len(self), width), pad_id, np.int64)
        dense[np.arange(width) < self.lengths[:, None]] = self.flat
        return torch.from_numpy(dense)

    def truncate(self, length: int) -> Ragged:
        """Rows cut to `length` tokens as CLIP's tokenizer cuts them: the last token stays the end of text."""
        lengths = self.lengths
        if lengths.max(initial=0) <= length:
            return self
        kept = np.minimum(lengths, length)
        offsets = starts(kept)
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
        last = position == np.repeat(kept - 1, kept)
        source = np.where(last, np.repeat(self.offsets[1:] - 1, kept), np.repeat(self.offsets[:-1], kept) + position)
        return Ragged(self.flat[source], offsets)


def starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] lengths → [N + 1] offsets."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
