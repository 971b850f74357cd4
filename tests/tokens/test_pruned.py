"""A part of CLIP's vocabulary: captions of the corpus are cut as before, and any other text is spelt exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import SimpleTokenizer

from clip_distill.corpus.layout import scan
from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.pruned import PrunedTokenizer, kept_ids, prune, whole
from clip_distill.tokens.spec import TokenizerSpec

CLIP = TokenizerSpec("clip", 77, 49408)
CORPUS = ["a dog runs on the beach", "two dogs run", "a brown cat isn't running", "une crêpe à 3€"]
FLICKR = Path(__file__).parents[2] / "../shared/flickr8k"


def pruned(corpus: list[str] = CORPUS, **options: int) -> TokenizerSpec:
    return prune(CLIP, tokenize(CLIP, corpus), **options)


SPEC = pruned()
TOKENIZER: Any = load_tokenizer(SPEC)
SIMPLE = SimpleTokenizer()


def test_captions_of_the_corpus_keep_their_tokens() -> None:
    kept = kept_ids(SPEC.as_dict())
    assert kept is not None
    whole_tokens, tokens = tokenize(CLIP, CORPUS), tokenize(SPEC, CORPUS)
    assert np.array_equal(kept[tokens.flat], whole_tokens.flat)
    assert np.array_equal(tokens.offsets, whole_tokens.offsets)


def test_the_table_has_the_corpus_the_bytes_and_the_ends() -> None:
    used = set(np.unique(tokenize(CLIP, CORPUS).flat).tolist())
    assert SPEC.vocab_size == len(used | set(range(512)) | {49406, 49407})
    assert TOKENIZER.vocab_size == SPEC.vocab_size
    tokens = tokenize(SPEC, ["dog"])
    assert tokens.flat[0] == SPEC.vocab_size - 2
    assert tokens.flat[-1] == tokens.flat.max() == SPEC.vocab_size - 1  # argmax still finds the end of text
    assert tokens.flat.dtype == np.uint16


def test_an_unseen_word_is_spelt_by_undoing_merges_down_to_kept_tokens() -> None:
    corpus = ["ze bra"]  # "zebra" is the merge of ze and bra</w>, one of which is here
    tokenizer: Any = load_tokenizer(pruned(corpus))
    names = [tokenizer.decoder[int(tokenizer.kept[id])] for id in tokenizer.encode("zebra")]
    assert names == ["z", "e", "bra</w>"]
    assert tokenizer.decode(tokenizer.encode("a zebra crossing")).strip() == "a zebra crossing"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc"))), max_size=5))
def test_every_text_has_the_spelling_that_the_whole_vocabulary_gives_it(texts: list[str]) -> None:
    for text in texts:
        ids = TOKENIZER.encode(text)
        assert all(0 <= id < SPEC.vocab_size for id in ids)
        assert TOKENIZER.decode(ids) == SIMPLE.decode(SIMPLE.encode(text))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=150), max_size=5))
def test_ragged_tokens_are_the_tokenizers_own(texts: list[str]) -> None:
    assert np.array_equal(tokenize(SPEC, texts).pad(0, 77), TOKENIZER(texts) if texts else np.zeros((0, 77)))


def test_rare_tokens_go_and_common_ones_stay() -> None:
    twice = pruned(min_count=2)
    names = {SIMPLE.decoder[int(id)] for id in kept_ids(twice.as_dict())[512:]}  # type: ignore[index]
    assert names == {"<start_of_text>", "<end_of_text>"}  # of "a", a single byte, there are two
    common = kept_ids(pruned(common=1000).as_dict())
    assert common is not None and set(range(1512)) <= set(common.tolist())


def test_a_spec_survives_json_and_gives_the_whole_one_back() -> None:
    again = TokenizerSpec(**json.loads(json.dumps(SPEC.as_dict())))
    assert again == SPEC
    assert isinstance(load_tokenizer(again), PrunedTokenizer)
    assert whole(SPEC) == CLIP
    assert len(json.dumps(SPEC.as_dict())) < 3000


def test_options_of_open_clips_tokenizer_are_kept() -> None:
    kwargs = {"tokenizer_kwargs": {"clean": "canonicalize", "additional_special_tokens": ["<mask>"]}}
    spec = TokenizerSpec("clip", 77, 49409, cfg=kwargs)
    cut = prune(spec, tokenize(spec, ["A dog, a <mask>!"]))
    kept = kept_ids(cut.as_dict())
    assert kept is not None and kept[-1] == 49408
    assert np.array_equal(kept[tokenize(cut, ["dog a <mask>"]).flat], tokenize(spec, ["dog a <mask>"]).flat)
    assert whole(cut) == spec


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="expected a teacher with CLIP's own BPE, found the tokenizer 'some/bert'"):
        prune(TokenizerSpec("some/bert", 64, 30000), tokenize(CLIP, CORPUS))
    with pytest.raises(ValueError, match="expected ≥ 1 and ≥ 0, found 0 and 0"):
        pruned(min_count=0)
    with pytest.raises(ValueError, match="pruned vocabulary: expected content"):
        kept_ids(SPEC.as_dict() | {"cfg": SPEC.cfg | {"kept_sha256": "0" * 64}})


def test_on_flickr8k() -> None:
    if not FLICKR.is_dir():
        pytest.skip(f"{FLICKR} is not here")
    corpus = scan(str(FLICKR))
    train, val = (part.require_captions().column("text").unique().to_pylist() for part in (corpus.train, corpus.val))
    spec = prune(CLIP, tokenize(CLIP, train))
    kept = kept_ids(spec.as_dict())
    assert kept is not None and spec.vocab_size == 7660
    assert np.array_equal(kept[tokenize(spec, train).flat], tokenize(CLIP, train).flat)
    longer = len(tokenize(spec, val).flat) / len(tokenize(CLIP, val).flat)
    assert 1 < longer < 1.02  # few words are new, and they take few pieces
