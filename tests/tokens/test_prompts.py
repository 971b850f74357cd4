from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.prompts import COMMON, made_up, vocabulary_prompts, whole_words
from clip_distill.tokens.spec import TokenizerSpec

CLIP = TokenizerSpec("clip", 77, 49408)


def test_clips_words_are_one_token_each() -> None:
    words = whole_words(CLIP)
    assert 32_000 < len(words) < 33_500 and len(set(words)) == len(words)
    lengths = tokenize(CLIP, words).lengths
    assert (lengths == 3).mean() > 0.995, "start, word and end, but for a few that open_clip's cleaning changes"
    assert {"dog", "beach", "café"} <= set(words)
    assert not any(word != word.lower() and word.lower() in words for word in words[:100])
    assert words.index("the") < words.index("dog") < words.index("beach")


def test_words_of_other_tokenizers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hund", "##e", "Haus", "haus", "狗", "7", "a", "b"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    from clip_distill.tokens import hugging_face

    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    spec = hugging_face.describe(loaded, str(tmp_path), 16, len(vocabulary), {})
    assert whole_words(spec) == ["hund", "haus", "狗", "a", "b"]


def test_texts_are_different_and_the_same_for_a_seed() -> None:
    words = whole_words(CLIP)
    texts = made_up(words, 3000, seed=1)
    assert len(set(texts)) == len(texts) == 3000
    assert texts == made_up(words, 3000, seed=1) != made_up(words, 3000, seed=2)
    lengths = np.array([len(text.split()) for text in texts])
    assert lengths.min() >= 2 and 3 < lengths.mean() < 12 and lengths.max() > 15


def test_frequent_words_are_drawn_more_often() -> None:
    words = [f"w{number}" for number in range(1000)]
    texts = " ".join(made_up(words, 3000)).replace(".", "").split()
    drawn = [words.index(word) for word in texts if word[0] == "w" and word[1:].isdigit()]
    front = np.mean(np.array(drawn) < 100)
    # alike: 0.1 of them; the fourth power: 0.1 ** 0.25 of them
    assert front == pytest.approx((1 - COMMON) * 0.1 + COMMON * 0.1**0.25, abs=0.03)


def test_few_words_give_what_they_can() -> None:
    assert 0 < len(made_up(["dog"], 10_000)) < 10_000


def test_every_word_stands_in_every_template() -> None:
    prompts = vocabulary_prompts(CLIP, 100)
    assert {"dog.", "a photo of a dog."} <= set(prompts)
    assert len(prompts) == len(set(prompts)) == 2 * len(whole_words(CLIP)) + 100
