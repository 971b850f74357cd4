"""A Hugging Face tokenizer of forty words, made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "a dog cat child runs jumps on in the red blue grass snow ball with and two three of water".split()  # noqa: SIM905


def save_tokenizer(folder: Path, context_length: int, pad_is_end: bool = False, order: int = 1) -> None:
    """Lower-cased words; `</s>` ends a text; padding is `<pad>` (1), or `</s>` as in CLIP, and then the greatest id."""
    special = {"<unk>": 0, "<pad>": 1, "</s>": 2 + len(WORDS)}
    vocab = special | {word: 2 + i for i, word in enumerate(WORDS[::order])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", special["</s>"])]
    )
    wrap: Any = PreTrainedTokenizerFast
    wrap(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>" if pad_is_end else "<pad>",
        model_max_length=context_length,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., None]:
    """The function that writes one into a folder."""
    return save_tokenizer
