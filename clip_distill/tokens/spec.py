"""Which tokenizer, as plain data; `tokens.encode` loads and runs it.

Shapes: C context length.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

PLAIN = "transformers:"  # a source that is taken as it is


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

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def identity(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What of a spec's `as_dict` decides the tokens; where a hashed tokenizer lies does not."""
    if not tokenizer.get("sha256"):
        return tokenizer
    return tokenizer | {"source": PLAIN if tokenizer["source"].startswith(PLAIN) else "hugging face"}
