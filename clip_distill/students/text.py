"""Text students: open_clip's text transformer at any size, with the teacher's tokenizer or another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.pruned import kept_ids
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import THIN, TowerSpec

# How a text tower reads its tokens; a student that shares the teacher's tokenizer reads them alike
READING = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "eos_id", "pool_type", "no_causal_mask")


def transformer(
    teacher: Mapping[str, Any],
    context_length: int = 77,
    vocab_size: int = 49408,
    transformer_width: int = 128,
    transformer_layers: int = 6,
    transformer_heads: int = 8,
    mlp_ratio: float = 4.0,
    embedding_rank: int | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> tuple[TowerSpec, nn.Module]:
    """CLIP's text transformer (Radford et al., 2021); by default 7.6M parameters at D = 512, 6.3M in the vocabulary.

    Args:
        teacher: The teacher's record.
        context_length: Tokens of the longest caption; longer ones are truncated.
        vocab_size: Rows of the embedding table; the teacher's vocabulary must fit. A tokenizer of its own sets it.
        transformer_width: Of the tokens, a multiple of `transformer_heads`.
        transformer_layers: Transformer blocks.
        transformer_heads: Attention heads per block.
        mlp_ratio: Hidden width of a block's MLP over the width.
        embedding_rank: Keep the table of tokens as a product, vocab_size × embedding_rank times embedding_rank × width:
            1.6M numbers instead of 6.3M at rank 32. By default it is one table.
        tokenizer: A `TokenizerSpec` as a dictionary; the teacher's by default.
    """
    if tokenizer is not None:
        vocab_size = tokenizer["vocab_size"]
    tokenizer = dict(tokenizer or teacher["tokenizer"])
    if tokenizer["vocab_size"] > vocab_size:
        raise InvalidValue(
            f"student 'transformer': expected vocab_size {tokenizer['vocab_size']} (the tokenizer's) or more, "
            f"found {vocab_size}. Use --student.options.vocab_size {tokenizer['vocab_size']}"
        )
    if transformer_width % transformer_heads:
        raise InvalidValue(
            "student 'transformer': expected transformer_width a multiple of transformer_heads, "
            f"found {transformer_width} and {transformer_heads}"
        )
    if embedding_rank is not None and not 0 < embedding_rank <= transformer_width:
        raise InvalidValue(
            f"student 'transformer': expected embedding_rank from 1 to transformer_width {transformer_width}, found "
            f"{embedding_rank}"
        )
    cfg: dict[str, Any] = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": transformer_width,
        "layers": transformer_layers,
        "heads": transformer_heads,
        "mlp_ratio": mlp_ratio,
    } | _reading(teacher, tokenizer)
    if embedding_rank is not None:
        cfg[THIN] = embedding_rank
    spec = TowerSpec(
        tower="text",
        embed_dim=teacher["embed_dim"],
        cfg=cfg,
        quick_gelu=teacher["model_cfg"].get("quick_gelu", False),
        tokenizer={**tokenizer, "context_length": context_length},
        teacher=dict(teacher),
    )
    return spec, spec.build()


def _reading(teacher: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """How the tower reads tokens: as the teacher's does, or, of another tokenizer, by that one's own end of text."""
    kept = kept_ids(tokenizer)
    text_cfg = teacher["model_cfg"].get("text_cfg", {})
    same = kept is not None or tokenizer["source"] == teacher["tokenizer"]["source"]
    shared = {key: text_cfg[key] for key in READING if key in text_cfg} if same else {}
    if kept is not None and "eos_id" in shared:
        shared["eos_id"] = int(np.searchsorted(kept, shared["eos_id"]))
    if kept is not None or tokenizer["source"] == "clip" or "pool_type" in shared:
        return shared
    # open_clip's default takes the greatest id for the end of text, which holds for CLIP's own vocabulary alone
    tokens = tokenize(TokenizerSpec(**tokenizer), ["a", "the end"])
    one, other = tokens.flat[tokens.offsets[1:] - 1].tolist()
    return shared | ({"pool_type": "eos", "eos_id": one} if one == other else {"pool_type": "last"})
