"""Hugging Face tokenizers: loaded by folder or hub name, known by their content.

Shapes: N captions, C context length.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clip_distill.system.errors import InvalidValue
from clip_distill.system.hub import hub_or_cache
from clip_distill.tokens.spec import TokenizerSpec

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "unk_token_id", "pad_token_id")


class PlainTokenizer:
    """A Hugging Face tokenizer without open_clip's cleaning: what `transformers` processors feed to their models.

    Args:
        tokenizer: The tokenizer.
        context_length: C.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: list[str]) -> Tensor:
        """N strings → int64 [N, C]."""
        encoded = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        tokens: Tensor = encoded.input_ids
        return tokens

    def save_pretrained(self, folder: str) -> None:
        self.tokenizer.save_pretrained(folder)


def load(
    source: str, context_length: int, sha256: str, plain: bool, mode: str | None, kwargs: dict[str, Any]
) -> HFTokenizer | PlainTokenizer:
    """Load a Hugging Face tokenizer.

    Args:
        source: Its folder or hub name.
        context_length: C.
        sha256: What `hash_tokenizer` must give; empty for anything.
        plain: As it is, rather than behind open_clip's cleaning.
        mode: open_clip's `tokenizer_mode`.
        kwargs: open_clip's `tokenizer_kwargs`.

    Raises:
        ValueError: It can't be loaded, or its content has changed.
    """
    from open_clip.tokenizer import HFTokenizer

    tokenizer: HFTokenizer | PlainTokenizer
    with contextlib.nullcontext() if Path(source).is_dir() else hub_or_cache():
        try:
            if plain:
                from transformers import AutoTokenizer

                tokenizer = PlainTokenizer(AutoTokenizer.from_pretrained(source), context_length)
            else:
                tokenizer = HFTokenizer(source, context_length=context_length, tokenizer_mode=mode, **kwargs)
        except (OSError, ValueError) as error:
            raise InvalidValue(
                f"tokenizer {source!r}: expected a Hugging Face tokenizer's folder or hub name, found {error}\n"
                "If the folder has moved, put it back or give the teacher's new place."
            ) from error
    found = hash_tokenizer(tokenizer.tokenizer)
    if sha256 and sha256 != found:
        raise InvalidValue(
            f"tokenizer {source!r} has changed: expected content {sha256[:12]}…, found {found[:12]}…\n"
            "Put the old files back, or embed again with the teacher as it is now."
        )
    return tokenizer


def describe(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    context_length: int,
    vocab_size: int = 0,
    cfg: dict[str, Any] | None = None,
) -> TokenizerSpec:
    """The spec of a loaded tokenizer.

    Args:
        tokenizer: The tokenizer.
        source: Where it came from, as `TokenizerSpec.source` writes it.
        context_length: C.
        vocab_size: Rows of the text tower's embedding table, which may be more than the tokenizer fills.
        cfg: As in TokenizerSpec.

    Raises:
        ValueError: It has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise InvalidValue(f"tokenizer {source!r}: expected one with a padding token, found none")
    return TokenizerSpec(
        source=source,
        context_length=context_length,
        vocab_size=max(vocab_size, len(tokenizer)),
        pad_id=int(tokenizer.pad_token_id),
        cfg=cfg or {},
        pad_is_end=tokenizer.pad_token_id == tokenizer.eos_token_id,
        sha256=hash_tokenizer(tokenizer),
    )


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the ids: vocabulary, merges, normalisation, special tokens; not where it lies."""
    facts: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in SPECIAL}
    facts |= {"padding_side": tokenizer.padding_side, "truncation_side": tokenizer.truncation_side}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts |= {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:  # less what the last call left there
        facts["backend"] = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
