"""Captions as tokens, stored ragged: one flat array and offsets, never N×77.

CLIP's own BPE is fast here in plain Python. No token crosses white space, so a caption is one look-up per word in a
table that open_clip's code fills, a word at a time. That gives the same ids by construction, and beats the Rust
tokenizers, which merge every word of every caption anew (`benchmarks/tokens.py` compares them).

Shapes: N captions, T tokens in all, L tokens of the longest caption in a batch, C context length.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

Tokenizer = Callable[[list[str]], Tensor]
CHUNK = 8192  # captions tokenised at a time, which bounds the dense intermediate to 5 MB
ROWS_AT_ONCE = 65536  # captions copied at a time
KNOWN_WORDS = 1 << 20  # entries of a word table before it starts anew, which bounds it to some 200 MB
PLAIN = "transformers:"


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer, as plain data: two specs of the same `identity` give equal tokens.

    Args:
        source: "clip" for CLIP's own BPE, "clip-pruned" for a part of it; "tokenizer.json" for one whose file is in
            `cfg`; "transformers:PATH_OR_NAME" for a Hugging Face tokenizer as it is; a path or name alone for one
            behind open_clip's cleaning of text.
        context_length: C; longer captions are truncated, with the end-of-text token kept.
        vocab_size: Rows that an embedding table needs.
        pad_id: Fills a row behind its caption's end.
        cfg: open_clip's text_cfg keys that name the tokenizer (`hf_tokenizer_name`, `tokenizer_kwargs`, …), which
            tokens a pruned one keeps, and the content of a tokenizer.json.
        pad_is_end: `pad_id` also ends a caption, as in Hugging Face's CLIP: the first one belongs to the caption.
        sha256: Content hash of a Hugging Face tokenizer, whose folder may be copied or changed; empty for the others.
    """

    source: str
    context_length: int
    vocab_size: int
    pad_id: int = 0
    cfg: dict[str, Any] = field(default_factory=dict)
    pad_is_end: bool = False
    sha256: str = ""

    def load(self) -> Tokenizer:
        """The tokenizer itself: N strings → int64 [N, C].

        Raises:
            ValueError: A Hugging Face tokenizer is not where it was, or is another one now.
        """
        from open_clip.tokenizer import SimpleTokenizer

        from clip_distill.tokens import hugging_face as hf_tokens
        from clip_distill.tokens import pruned
        from clip_distill.tokens import trained as new_tokenizer

        kwargs = self.cfg.get("tokenizer_kwargs") or {}
        if self.source == "clip":
            tokenizer: Tokenizer = SimpleTokenizer(context_length=self.context_length, **kwargs)
            return tokenizer
        if (kept := pruned.kept_ids(self.as_dict())) is not None:
            return pruned.PrunedTokenizer(kept, self.context_length, **kwargs)
        if self.source == new_tokenizer.SOURCE:
            return new_tokenizer.load(self)
        plain = self.source.startswith(PLAIN)
        mode = self.cfg.get("tokenizer_mode")
        source = self.source.removeprefix(PLAIN)
        return hf_tokens.load(source, self.context_length, self.sha256, plain, mode, kwargs)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def identity(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What of a spec's `as_dict` decides the tokens; where a hashed tokenizer lies does not."""
    if not tokenizer.get("sha256"):
        return tokenizer
    return tokenizer | {"source": PLAIN if tokenizer["source"].startswith(PLAIN) else "hugging face"}


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
        offsets = starts(kept)
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
        last = position == np.repeat(kept - 1, kept)
        source = np.where(last, np.repeat(self.offsets[1:] - 1, kept), np.repeat(self.offsets[:-1], kept) + position)
        return Ragged(self.flat[source], offsets)


def starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] lengths → [N + 1] offsets."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def tokenize(spec: TokenizerSpec, texts: Sequence[str]) -> Ragged:
    """Tokenise `texts` as `spec.load()` does, padding dropped; padding the result again gives the same tensor."""
    encode = _encoder(json.dumps(spec.as_dict(), sort_keys=True))
    parts = []
    with tqdm(total=len(texts), desc="tokenise", unit=" captions", delay=2) as bar:
        for start in range(0, len(texts), CHUNK):
            parts.append(encode(list(texts[start : start + CHUNK])))
            bar.update(len(parts[-1]))
    if not parts:
        return Ragged(np.empty(0, _dtype(spec)), np.zeros(1, np.int64))
    return Ragged(np.concatenate([part.flat for part in parts]), starts(np.concatenate([p.lengths for p in parts])))


@functools.lru_cache(maxsize=4)
def _encoder(spec_json: str) -> Callable[[list[str]], Ragged]:
    """The function that tokenises a chunk; kept, since a store is tokenised shard by shard and word tables fill up."""
    spec = TokenizerSpec(**json.loads(spec_json))
    kwargs = spec.cfg.get("tokenizer_kwargs") or {}
    across_words = set(kwargs) - {"clean"}  # masking, more special tokens
    if spec.source in ("clip", "clip-pruned") and not across_words:
        words = WordTable(spec.load(), _dtype(spec), shortcut=kwargs.get("clean", "lower") == "lower")
        return lambda texts: words.encode(texts).truncate(spec.context_length)
    tokenizer = spec.load()
    return lambda texts: drop_padding(tokenizer(texts), spec)


class WordTable(dict[str, bytes]):
    """CLIP's BPE, a word at a time: a word between white space → the bytes of its token ids.

    Args:
        tokenizer: open_clip's; it is changed, so it must not be used elsewhere.
        dtype: Of the ids.
        shortcut: Whether printable ASCII without `&` needs no more than lower case. That holds for the cleaning
            "lower", whose other steps are ftfy's repairs of Unicode and control characters, and HTML entities.
    """

    def __init__(self, tokenizer: SimpleTokenizer, dtype: type[np.unsignedinteger[Any]], shortcut: bool) -> None:
        self.clean, self.tokenizer, self.dtype, self.shortcut = tokenizer.clean_fn, tokenizer, dtype, shortcut
        tokenizer.clean_fn = str  # captions are cleaned whole, before they are cut into words
        self.special = dict(tokenizer.cache)
        self.start, self.end = (dtype(id).tobytes() for id in (tokenizer.sot_token_id, tokenizer.eot_token_id))

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self.tokenizer.encode(word), self.dtype).tobytes()
        self[word] = ids
        return ids

    def encode(self, texts: list[str]) -> Ragged:
        """Start, words and end of each text; not truncated."""
        if len(self) + len(self.tokenizer.cache) > KNOWN_WORDS:
            self.clear()
            self.tokenizer.cache = dict(self.special)
        known = self.__getitem__
        rows = []
        for text in texts:
            easy = self.shortcut and text.isascii() and text.isprintable() and "&" not in text
            clean = text.lower() if easy else self.clean(text)
            rows.append(b"".join((self.start, *map(known, clean.split()), self.end)))
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        return Ragged(np.frombuffer(b"".join(rows), self.dtype), starts(sizes // np.dtype(self.dtype).itemsize))


def drop_padding(dense: Tensor, spec: TokenizerSpec) -> Ragged:
    """int64 [N, C] without each row's trailing padding."""
    tokens = dense.numpy()
    kept = tokens != spec.pad_id
    length = np.where(kept.any(1), tokens.shape[1] - kept[:, ::-1].argmax(1), 0)
    if spec.pad_is_end:
        length = np.minimum(length + 1, tokens.shape[1])
    flat = tokens[np.arange(tokens.shape[1]) < length[:, None]]
    return Ragged(flat.astype(_dtype(spec)), starts(length))


def _dtype(spec: TokenizerSpec) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if spec.vocab_size <= 1 << 16 else np.uint32
