"""Tokens against open_clip's own, on real captions and on the worst that people could write."""

from __future__ import annotations

import functools
import html
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer

from clip_distill.tokens import encode as tokens
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.ragged import Ragged, starts
from clip_distill.tokens.spec import TokenizerSpec, identity

FLICKR = Path(__file__).parents[2].parent / "shared" / "flickr8k"
CLIP = TokenizerSpec("clip", 77, 49408)
TRAPS = [
    "",
    " ",
    "a dog",
    "A DOG's\tball\n",
    "it's we'll I'D don't 'S",
    "<end_of_text> a <START_OF_TEXT>",
    "fish &amp; chips",
    "&lt;end_of_text&gt;",
    "&amp;amp;lt;",
    "&#x27;s &nbsp;&copy &notanentity;",
    "2 < 3 & 4 > 1",
    "１２３ ＡＢＣ　ｄ",
    "ﬁne ﬂag",
    "schÃ¶n â€œquotedâ€\x9d",
    "“curly” ‘quotes’",
    "👩‍👩‍👧‍👦 🐕‍🦺 🇩🇪",
    "一只狗在草地上跑",
    "été e\u0301te\u0301",
    "İstanbul ΌΣΟΣ ΣΑΣ ǅ",
    "a\x00b\x07c\x1bd\x1b[31mred\x1b[0m",
    "a\x1cb\x1dc\x1e\x1f\x85d\u2028e\u200bf\u180eg\ufeffh",
    "\ud800 lone",
    "x" * 300,
    "word " * 500,
    "!" * 200,
    "a.b,c;d:e-f_g/h\\i|j",
    "ſtreet 'ſ",
    "½ ² ⅷ ٣",
    "\u202eabc\u202c",
    '~`@#$%^*()+={}[]"?',
]
text = st.one_of(
    st.text(),
    st.text(st.characters(max_codepoint=0x17F)),
    st.lists(st.sampled_from([*TRAPS, " ", "'", "&", "<", ";", "the", "Dog", "9"]), max_size=6).map("".join),
    st.text().map(html.escape),
)


@functools.cache
def simple(context_length: int = 77, clean: str = "lower") -> SimpleTokenizer:
    return SimpleTokenizer(context_length=context_length, clean=clean)


def flickr_captions() -> list[str]:
    """All English captions, and some Chinese."""
    if not FLICKR.is_dir():
        pytest.skip(f"no Flickr8k in {FLICKR}")
    found: list[str] = []
    for split in ("train", "val"):
        file = FLICKR / "COCO" / "annotations" / f"captions_{split}2017.json"
        found += [row["caption"] for row in json.loads(file.read_text("utf-8"))["annotations"]]
    lines = (FLICKR / "CC" / "Train_GCC-training.tsv").read_text("utf-8").splitlines()
    chinese = (FLICKR / "zh" / "parallel_train.tsv").read_text("utf-8").splitlines()[:1000]
    return found + [line.split("\t")[0] for line in lines] + [line.split("\t")[1] for line in chinese]


def check_same(texts: list[str], spec: TokenizerSpec = CLIP) -> Ragged:
    """Ours, padded again, is open_clip's tensor; and nothing but its padding is gone."""
    expected = simple(spec.context_length, **spec.cfg.get("tokenizer_kwargs", {}))(texts)
    ragged = tokenize(spec, texts)
    assert torch.equal(ragged.pad(spec.pad_id, spec.context_length), expected)
    assert (ragged.flat[ragged.offsets[1:] - 1] == simple().eot_token_id).all()
    return ragged


def test_flickr8k_is_tokenised_as_open_clip_does() -> None:
    texts = flickr_captions()
    assert len(texts) > 35_000
    assert check_same(texts).flat.dtype == np.uint16


def test_traps() -> None:
    check_same(TRAPS)


@settings(deadline=None)
@given(st.lists(text, max_size=8))
def test_any_text(texts: list[str]) -> None:
    check_same(["a", *texts])


@settings(deadline=None)  # the first example of each kind loads a tokenizer
@given(text, st.sampled_from([1, 2, 5, 20, 120]), st.sampled_from(["lower", "whitespace", "canonicalize"]))
def test_other_lengths_and_cleanings(caption: str, context_length: int, clean: str) -> None:
    spec = TokenizerSpec("clip", context_length, 49408, cfg={"tokenizer_kwargs": {"clean": clean}})
    check_same([caption], spec)


def test_tokens_that_look_across_words_take_open_clips_way() -> None:
    kwargs = {"additional_special_tokens": ["new york"]}
    spec = TokenizerSpec("clip", 77, 49409, cfg={"tokenizer_kwargs": kwargs})
    tokenizer = SimpleTokenizer(**kwargs)
    assert not torch.equal(tokenizer(["in new york now"]), simple()(["in new york now"]))
    assert torch.equal(tokenize(spec, ["in new york now"]).pad(0, 77), tokenizer(["in new york now"]))


def test_no_texts() -> None:
    ragged = tokenize(CLIP, [])
    assert len(ragged) == 0
    assert ragged.pad(0).shape == (0, 1)


def test_word_table_starts_anew_when_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "KNOWN_WORDS", 5)
    monkeypatch.setattr(tokens, "CHUNK", 2)
    tokens._encoder.cache_clear()
    check_same([f"word{i} number {i} <end_of_text>" for i in range(20)])


def test_vocabularies_beyond_uint16_widen() -> None:
    spec = TokenizerSpec("clip", 77, 70_000)
    assert tokenize(spec, ["a dog"]).flat.dtype == np.uint32
    check_same(["a dog"], spec)


@st.composite
def raggeds(draw: st.DrawFn) -> tuple[list[list[int]], Ragged]:
    rows = draw(st.lists(st.lists(st.integers(1, 60_000), max_size=9), max_size=6))
    flat = np.array([token for row in rows for token in row], np.uint16)
    return rows, Ragged(flat, starts(np.array([len(row) for row in rows], np.int64)))


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.flat[ragged.offsets[i] : ragged.offsets[i + 1]].tolist() for i in range(len(ragged))]


@given(raggeds(), st.lists(st.integers(0, 5), max_size=8))
def test_take(made: tuple[list[list[int]], Ragged], wanted: list[int]) -> None:
    rows, ragged = made
    chosen: NDArray[np.int64] = np.array([i for i in wanted if i < len(rows)], np.int64)
    assert as_lists(ragged.take(chosen)) == [rows[i] for i in chosen]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_distill.tokens.ragged.ROWS_AT_ONCE", 3)  # several parts
        assert as_lists(ragged.take(chosen)) == [rows[i] for i in chosen]


@given(raggeds(), st.integers(0, 3))
def test_pad(made: tuple[list[list[int]], Ragged], more: int) -> None:
    rows, ragged = made
    longest = max([1, *map(len, rows)])
    assert ragged.pad(7).shape == (len(rows), longest)
    assert ragged.pad(7, longest + more).tolist() == [row + [7] * (longest + more - len(row)) for row in rows]


@given(raggeds(), st.integers(1, 10))
def test_truncate(made: tuple[list[list[int]], Ragged], length: int) -> None:
    rows, ragged = made
    expected = [row if len(row) <= length else row[: length - 1] + row[-1:] for row in rows]
    assert as_lists(ragged.truncate(length)) == expected


def test_a_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="has 3 tokens and does not fit a width of 2"):
        Ragged(np.arange(3, dtype=np.uint16), starts(np.array([3]))).pad(0, 2)


def test_identity_is_the_content_where_that_is_known() -> None:
    here, there = (TokenizerSpec(folder, 8, 20, sha256="abc").as_dict() for folder in ("/here", "/there"))
    assert identity(here) == identity(there)
    assert identity(here) != identity(TokenizerSpec("/here", 8, 20, sha256="def").as_dict())
    assert identity(here) != identity(TokenizerSpec("transformers:/here", 8, 20, sha256="abc").as_dict())
    assert identity(CLIP.as_dict()) == CLIP.as_dict()
