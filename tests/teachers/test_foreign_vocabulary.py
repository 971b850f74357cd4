"""Text students of teachers whose tokenizer is not CLIP's: their end of text is not the greatest id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from clip_distill.students import make_student
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.hugging_face import describe
from clip_distill.tokens.spec import TokenizerSpec

SMALL = {"transformer_width": 16, "transformer_layers": 2, "transformer_heads": 2, "context_length": 12}


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_the_embedding_is_taken_at_the_end_of_the_caption(
    pad_is_end: bool, make_tokenizer: Callable[..., None], make_record: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, 12, pad_is_end=pad_is_end)
    tokens = describe(AutoTokenizer.from_pretrained(tmp_path), f"transformers:{tmp_path}", 12, vocab_size=80)
    record = make_record(8) | {"tokenizer": tokens.as_dict()}
    torch.manual_seed(0)
    spec, student = make_student("text", None, record, SMALL)
    assert spec.causal
    ragged = tokenize(TokenizerSpec(**spec.tokenizer), ["a dog runs", "a dog jumps", "a cat", "child"])
    with torch.no_grad():
        cut = student(ragged.pad(tokens.pad_id))
        torch.testing.assert_close(cut, student(ragged.pad(tokens.pad_id, 12)), atol=1e-5, rtol=1e-4)
    assert torch.pdist(cut).min() > 1e-3  # the last word counts
