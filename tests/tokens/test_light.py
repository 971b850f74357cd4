"""Tokenizers without torch give the very ids of those with it, in every script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.light import light_encoder, pad
from clip_distill.tokens.pruned import prune
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.tokens.trained import train

CORPUS = [
    "a red circle on blue",
    "a photo of a dog",
    "two children play football",
    "一只黑狗在草地上奔跑",
    "un chien",
] * 3
TEXTS = [
    *CORPUS,
    "",
    "   ",
    "a  dog\tand a\ncat",
    "It's the dogs' — she'll won't I'd we've",
    "don’t “quote” … ﬁne ﬂag Ａ１ ½ №",
    "caf\u0065\u0301 café naïve Ünïcödé ß ſ",
    "&lt;b&gt; &amp;amp; fish &amp; chips",
    "mojibake â€œlikeâ€\u009d this cafÃ©",
    "👩‍👩‍👧‍👦 🇨🇳 ❤️‍🔥 ☕️ 12345 3.14 x² C++ #tag @you",
    "क्या यह हिन्दी है؟ هذا نص عربي שלום ภาษาไทย 한국어 日本語",
    "word " * 120,
    "<start_of_text> a <end_of_text>",
    "\u0000\u200b\ufeff zero width",
]
CLIP = TokenizerSpec("clip", 77, 49408)
SPECS = {
    "clip": CLIP,
    "clip, short": TokenizerSpec("clip", 12, 49408),
    "clip-pruned": prune(CLIP, tokenize(CLIP, CORPUS)),
    "tokenizer.json": train(CORPUS, 300, 20),
}
ENCODERS = {name: light_encoder(spec.as_dict()) for name, spec in SPECS.items()}
FLICKR8K = Path(__file__).parents[2] / ".." / "shared" / "flickr8k"


def same(name: str, texts: list[str]) -> None:
    encode, spec = ENCODERS[name], SPECS[name]
    assert encode is not None
    theirs = tokenize(spec, texts).pad(spec.pad_id, spec.context_length).numpy()
    ours = pad([encode(text) for text in texts], spec.pad_id, spec.context_length)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SPECS)
def test_every_script_and_emoji_gives_the_same_ids(name: str) -> None:
    same(name, TEXTS)


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40))
def test_any_text_gives_the_same_ids(text: str) -> None:
    for name in SPECS:
        same(name, [text])


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="Flickr8k is not here")
def test_captions_of_photos_give_the_same_ids() -> None:
    record = json.loads((FLICKR8K / "COCO/annotations/captions_val2017.json").read_text(encoding="utf-8"))
    same("clip", [each["caption"] for each in record["annotations"]])


def test_other_tokenizers_are_left_to_torch() -> None:
    assert light_encoder(TokenizerSpec("transformers:bert", 64, 30000).as_dict()) is None
    assert light_encoder(TokenizerSpec("clip", 77, 49408, cfg={"tokenizer_kwargs": {"clean": "x"}}).as_dict()) is None


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys; from clip_distill.tokens.light import light_encoder; "
        "print(light_encoder(dict(source='clip', context_length=77, cfg={}))('a dog')); "
        "sys.exit(str({'torch', 'open_clip', 'transformers'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout.strip() == "[49406, 320, 1929, 49407]"
