"""Captions to tokens.

CLIP's own BPE is fast here in plain Python. No token crosses white space, so a caption is one look-up per word in a
table that open_clip's code fills, a word at a time. That gives the same ids by construction, and beats the Rust
tokenizers, which merge every word of every caption anew (`benchmarks/tokens.py` compares them).

Shapes: N captions, T tokens in all, L tokens of the longest caption in a batch, C context length.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from clip_distill.system.talk import progress
from clip_distill.tokens import hugging_face, pruned, trained
from clip_distill.tokens.ragged import Ragged, starts
from clip_distill.tokens.spec import PLAIN, TokenizerSpec

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

Tokenizer = Callable[[list[str]], Tensor]
CHUNK = 8192  # captions tokenised at a time, which bounds the dense intermediate to 5 MB
KNOWN_WORDS = 1 << 20  # entries of a word table before it starts anew, which bounds it to some 200 MB


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer of a spec: N strings → int64 [N, C].

    Raises:
        ValueError: A Hugging Face tokenizer is not where it was, or is another one now.
    """
    from open_clip.tokenizer import SimpleTokenizer

    kwargs = spec.cfg.get("tokenizer_kwargs") or {}
    if spec.source == "clip":
        tokenizer: Tokenizer = SimpleTokenizer(context_length=spec.context_length, **kwargs)
        return tokenizer
    if (kept := pruned.kept_ids(spec.as_dict())) is not None:
        return pruned.PrunedTokenizer(kept, spec.context_length, **kwargs)
    if spec.source == trained.SOURCE:
        return trained.load(spec)
    plain, mode = spec.source.startswith(PLAIN), spec.cfg.get("tokenizer_mode")
    return hugging_face.load(spec.source.removeprefix(PLAIN), spec.context_length, spec.sha256, plain, mode, kwargs)


def tokenize(spec: TokenizerSpec, texts: Sequence[str]) -> Ragged:
    """Tokenise `texts` as the spec's tokenizer does, less its padding; padding the result gives the same tensor."""
    encode = _encoder(json.dumps(spec.as_dict(), sort_keys=True))
    parts = []
    with progress(total=len(texts), desc="tokenise", unit=" captions") as bar:
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
        words = WordTable(load_tokenizer(spec), _dtype(spec), shortcut=kwargs.get("clean", "lower") == "lower")
        return lambda texts: words.encode(texts).truncate(spec.context_length)
    tokenizer = load_tokenizer(spec)
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
