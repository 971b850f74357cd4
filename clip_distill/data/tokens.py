"""Captions as tokens, stored ragged: one flat array and offsets, never N×77.

Shapes: N captions, T tokens in all, L tokens of the longest caption in a batch, C context length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokenizer = Callable[[list[str]], Tensor]
CHUNK = 8192  # captions tokenised at a time, which bounds the dense intermediate to 5 MB


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer, as plain data: two specs that are equal give equal tokens.

    Args:
        source: "clip" for CLIP's own BPE, or a Hugging Face tokenizer's folder or hub name.
        context_length: C; longer captions are truncated, with the end-of-text token kept.
        vocab_size: Rows that an embedding table needs.
        pad_id: Fills a row behind its caption's end.
        cfg: open_clip's text_cfg keys that name the tokenizer (`hf_tokenizer_name`, `tokenizer_kwargs`, …).
    """

    source: str
    context_length: int
    vocab_size: int
    pad_id: int = 0
    cfg: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Tokenizer:
        """The tokenizer itself: N strings → int64 [N, C]."""
        from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer

        kwargs = self.cfg.get("tokenizer_kwargs") or {}
        if self.source == "clip":
            return SimpleTokenizer(context_length=self.context_length, **kwargs)
        if self.source.startswith("siglip:"):
            return SigLipTokenizer(self.source.removeprefix("siglip:"), context_length=self.context_length)
        mode = self.cfg.get("tokenizer_mode")
        return HFTokenizer(self.source, context_length=self.context_length, tokenizer_mode=mode, **kwargs)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.flat[np.repeat(self.offsets[rows], lengths) + within], offsets)

    def pad(self, pad_id: int, length: int | None = None) -> Tensor:
        """int64 [N, L]; L is the longest row, or `length`, which every row must fit."""
        longest = int(self.lengths.max(initial=1))
        width = longest if length is None else length
        if longest > width:
            raise ValueError(f"a caption has {longest} tokens and does not fit a width of {width}")
        dense = np.full((len(self), width), pad_id, np.int64)
        dense[np.arange(width) < self.lengths[:, None]] = self.flat
        return torch.from_numpy(dense)

    def truncate(self, length: int) -> Ragged:
        """Rows cut to `length` tokens as CLIP's tokenizer cuts them: the last token stays the end of text."""
        lengths = self.lengths
        if lengths.max(initial=0) <= length:
            return self
        kept = np.minimum(lengths, length)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
        last = position == np.repeat(kept - 1, kept)
        source = np.where(last, np.repeat(self.offsets[1:] - 1, kept), np.repeat(self.offsets[:-1], kept) + position)
        return Ragged(self.flat[source], offsets)


def tokenize(spec: TokenizerSpec, texts: Sequence[str]) -> Ragged:
    """Tokenise `texts` as `spec.load()` does, padding dropped; padding the result again gives the same tensor."""
    tokenizer = spec.load()
    dtype = np.uint16 if spec.vocab_size <= 1 << 16 else np.uint32
    flats: list[NDArray[Any]] = [np.empty(0, dtype)]
    lengths: list[NDArray[np.int64]] = []
    for start in range(0, len(texts), CHUNK):
        dense = tokenizer(list(texts[start : start + CHUNK])).numpy()
        kept = dense != spec.pad_id
        length = np.where(kept.any(1), dense.shape[1] - kept[:, ::-1].argmax(1), 0)
        flats.append(dense[np.arange(dense.shape[1]) < length[:, None]].astype(dtype))
        lengths.append(length.astype(np.int64))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))])
    return Ragged(np.concatenate(flats), offsets)
