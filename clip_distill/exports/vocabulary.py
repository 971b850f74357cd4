"""The whole token table of a student that was trained with a part of CLIP's vocabulary.

Shapes: V tokens of the whole vocabulary, w width.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn

from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say
from clip_distill.tokens.encode import load_tokenizer
from clip_distill.tokens.pruned import PrunedTokenizer, kept_ids, whole
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import THIN, TowerSpec
from clip_distill.towers.thin import make_whole


@torch.no_grad()
def expand_vocabulary(spec: TowerSpec, module: nn.Module) -> tuple[TowerSpec, nn.Module]:
    """A tower with CLIP's whole tokenizer and one table, for programs that have no other; others stay as they are.

    Texts of kept tokens have the same embeddings. A dropped token is one row here, the mean of the rows that spell it,
    where the student reads those one after the other: a text with such a token has another embedding.

    Raises:
        ValueError: The tower is not open_clip's own.
    """
    if THIN in spec.cfg:
        spec = dataclasses.replace(spec, cfg={key: value for key, value in spec.cfg.items() if key != THIN})
        module = make_whole(copy.deepcopy(module))
    kept = kept_ids(spec.tokenizer)
    if kept is None:
        return spec, module
    if spec.builder is not None:
        raise InvalidValue(f"expected one of open_clip's own text towers to expand, found one built by {spec.builder}")
    pruned = TokenizerSpec(**spec.tokenizer)
    tokenizer = load_tokenizer(pruned)
    assert isinstance(tokenizer, PrunedTokenizer)
    full = whole(pruned)
    cfg = spec.cfg | {"vocab_size": full.vocab_size}
    if "eos_id" in cfg:
        cfg["eos_id"] = int(kept[cfg["eos_id"]])
    new = dataclasses.replace(spec, cfg=cfg, tokenizer=full.as_dict())
    state = module.state_dict()
    table = state["token_embedding.weight"]
    lengths = torch.tensor([len(pieces) for pieces in tokenizer.pieces])
    flat = torch.tensor([piece for pieces in tokenizer.pieces for piece in pieces])
    starts = lengths.cumsum(0) - lengths
    rows = nn.functional.embedding_bag(flat, table, starts, mode="mean")  # [V, w]
    expanded = new.build().to(table.device, table.dtype)
    expanded.load_state_dict(state | {"token_embedding.weight": rows})
    say(
        f"the student has {len(kept):,} of CLIP's {full.vocab_size:,} tokens, and open_clip has no such tokenizer: the "
        "table is written whole, each other token as the mean of its pieces. Texts with one of those get other "
        "embeddings than the student gives"
    )
    return new, expanded.eval()
