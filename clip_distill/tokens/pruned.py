"""CLIP's own BPE with a part of its vocabulary: what a corpus uses, and pieces that spell anything else.

A dropped token is taken apart into the two tokens that its merge had joined, and these again, down to tokens that are
kept. All 512 tokens of single bytes are, so every text still has tokens, and a text of kept tokens alone is cut exactly
as by the whole vocabulary. What a dropped token becomes depends on that token alone.
Merges that are undone at random are BPE dropout (Provilkov et al., 2020); here they are undone where the table ends.

Shapes: V tokens of the whole vocabulary, K kept ones.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer

from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.ragged import Ragged
from clip_distill.tokens.spec import TokenizerSpec

SOURCE = "clip-pruned"
BYTES = 512  # the first tokens: each byte, within a word and at its end


class PrunedTokenizer(SimpleTokenizer):
    """open_clip's tokenizer, its ids those of the kept tokens alone, in their old order.

    Args:
        kept: [K] ids of the whole vocabulary, ascending.
        context_length: Tokens of a row.
        kwargs: open_clip's `tokenizer_kwargs`.

    Attributes:
        pieces: [V] what each token of the whole vocabulary becomes: ids of kept tokens, itself where it is kept.
    """

    def __init__(self, kept: NDArray[np.int64], context_length: int, **kwargs: Any) -> None:
        super().__init__(context_length=context_length, **kwargs)
        self.kept = kept
        place = {int(old): new for new, old in enumerate(kept)}
        self.pieces: list[tuple[int, ...]] = [(place[id],) for id in range(BYTES)]
        for id, (left, right) in enumerate(self.bpe_ranks, BYTES):  # in the order of their ranks, parts first
            whole = self.pieces[self.encoder[left]] + self.pieces[self.encoder[right]]
            self.pieces.append((place[id],) if id in place else whole)
        special: list[int] = [self.encoder[token] for token in list(self.encoder)[len(self.pieces) :]]
        self.pieces += [(place[id],) for id in special]
        self.all_special_ids: list[int] = [place[id] for id in special]
        self.sot_token_id, self.eot_token_id = self.all_special_ids[:2]
        self.vocab_size = len(kept)

    def encode(self, text: str) -> list[int]:
        return [piece for id in super().encode(text) for piece in self.pieces[id]]

    def decode(self, tokens: Any) -> str:
        return super().decode([int(self.kept[int(token)]) for token in tokens])


def prune(spec: TokenizerSpec, tokens: Ragged, min_count: int = 1, common: int = 0) -> TokenizerSpec:
    """Keep the tokens that a corpus uses, those of single bytes and the special ones.

    Args:
        spec: CLIP's own tokenizer.
        tokens: The corpus.
        min_count: Keep tokens that occur this often or more. Above 1, rarer words are spelt while training, too, which
            teaches the student the pieces that words of other texts will be spelt with.
        common: Also keep the first `common` merges: the most frequent ones of the text that CLIP's BPE was made from.

    Raises:
        ValueError: The tokenizer is another one, which could not spell what is dropped; or a count is out of range.
    """
    if spec.source != "clip":
        raise InvalidValue(
            f"student.vocabulary corpus: expected a teacher with CLIP's own BPE, found the tokenizer {spec.source!r}, "
            "whose dropped tokens nothing would spell. Use --student.vocabulary full"
        )
    if min_count < 1 or common < 0:
        raise InvalidValue(
            f"student.min_count and student.common: expected ≥ 1 and ≥ 0, found {min_count} and {common}"
        )
    counts = np.bincount(tokens.flat, minlength=spec.vocab_size)
    kept = counts >= min_count
    kept[: BYTES + common] = True
    specials = 2 + len((spec.cfg.get("tokenizer_kwargs") or {}).get("additional_special_tokens") or [])
    kept[spec.vocab_size - specials :] = True
    bits = np.packbits(kept).tobytes()
    cfg = {"kept": base64.b64encode(zlib.compress(bits, 9)).decode(), "kept_sha256": hashlib.sha256(bits).hexdigest()}
    cfg = spec.cfg | cfg | {"whole_vocab_size": spec.vocab_size}
    return dataclasses.replace(spec, source=SOURCE, vocab_size=int(kept.sum()), cfg=cfg)


def kept_ids(tokenizer: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """[K] ids that a spec's `as_dict` keeps; None where it is no pruned one.

    Raises:
        ValueError: The list is damaged.
    """
    if tokenizer.get("source") != SOURCE:
        return None
    cfg = tokenizer["cfg"]
    bits = zlib.decompress(base64.b64decode(cfg["kept"]))
    if (found := hashlib.sha256(bits).hexdigest()) != cfg["kept_sha256"]:
        raise InvalidValue(
            f"pruned vocabulary: expected content {cfg['kept_sha256'][:12]}…, found {found[:12]}…; take tower.json "
            "from the run again"
        )
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=cfg["whole_vocab_size"])).astype(np.int64)


def whole(spec: TokenizerSpec) -> TokenizerSpec:
    """The tokenizer that a pruned one was made from."""
    cfg = {key: value for key, value in spec.cfg.items() if key not in ("kept", "kept_sha256", "whole_vocab_size")}
    return dataclasses.replace(spec, source="clip", vocab_size=spec.cfg["whole_vocab_size"], cfg=cfg)
