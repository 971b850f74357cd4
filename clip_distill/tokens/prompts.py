"""Texts that need no data: every whole word that a teacher's tokenizer has, and phrases and sentences made up of them.

A text student that has only seen captions knows only their words. The teacher knows all of its vocabulary, and tells
what it makes of any text: so any text teaches. Made by seed, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_distill.tokens.encode import load_tokenizer
from clip_distill.tokens.spec import TokenizerSpec

TEMPLATES = ("{}.", "a photo of a {}.")
PHRASES = (
    "{} {}",
    "{} and {}",
    "a {} {}",
    "a {} on a {}",
    "the {} of the {}",
    "{} {} {}",
    "a {} {} in the {}",
    "a photo of a {} {}",
)
SUBJECTS = ("a", "two", "the", "a group of", "three", "some")
LINKS = ("on a", "with a", "in the", "near a", "of a", "wearing a", "and a", "next to a", "in front of a", "at the")
LONGEST = 4  # parts that a sentence has behind its first
COMMON = 0.5  # share of words that are drawn from the front of the list, where the most frequent ones are


def whole_words(spec: TokenizerSpec) -> list[str]:
    """The words of which each is one token, letters alone, in the tokenizer's own order: frequent ones first.

    Raises:
        ValueError: A Hugging Face tokenizer is not where it was, or is another one now.
    """
    tokenizer: Any = load_tokenizer(spec)
    candidates: Iterable[str]
    if hasattr(tokenizer, "encoder"):  # CLIP's own, and a part of it
        candidates = (
            decoded(tokenizer, token[: -len("</w>")]) for token in tokenizer.encoder if token.endswith("</w>")
        )
    else:
        candidates = _hugging_face_words(tokenizer.tokenizer)
    words = dict.fromkeys(word for word in candidates if word.isalpha() and len(word) < 40)
    return [word for word in words if word == word.lower() or word.lower() not in words]


def decoded(tokenizer: Any, token: str) -> str:
    """A token of CLIP's BPE, which spells bytes as characters; empty where they are not whole characters."""
    try:
        return bytes(tokenizer.byte_decoder[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""


def _hugging_face_words(tokenizer: Any) -> Iterable[str]:
    """Of SentencePiece and byte BPE, tokens that begin a word; of WordPiece, those that do not go on with one."""
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = any(token.startswith("##") for token, _ in ranked)
    for token, id in ranked:
        begins = not token.startswith("##") if pieces else token[:1] in ("▁", "Ġ")
        if begins and id not in tokenizer.all_special_ids:
            yield tokenizer.convert_tokens_to_string([token]).strip()


def made_up(words: list[str], count: int, seed: int = 0) -> list[str]:
    """`count` different texts, half of them phrases of two and three words, half sentences as long as captions.

    Args:
        words: To draw from: half of the draws from the whole list alike, half more often from its front.
        count: Of texts; fewer where so few words give no more.
        seed: Of what is drawn.
    """
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(20):  # rounds, of which the first is nearly enough
        missing = count - len(found)
        if missing <= 0:
            break
        drawn = iter(_draw(random, words, missing * (2 + 2 * (LONGEST + 1))))
        kinds = random.integers(2, size=missing)
        for kind in kinds.tolist():
            text = _phrase(random, drawn) if kind else _sentence(random, drawn)
            found.setdefault(text)
    return list(found)[:count]


def _draw(random: np.random.Generator, words: list[str], count: int) -> list[str]:
    front = random.random(count) < COMMON
    places = random.random(count)
    places = np.where(front, places**4, places)  # the fourth power: half of these are among the first 6%
    return [words[place] for place in (places * len(words)).astype(int).tolist()]


def _phrase(random: np.random.Generator, drawn: Any) -> str:
    template = PHRASES[random.integers(len(PHRASES))]
    return template.format(*(next(drawn) for _ in range(template.count("{}"))))


def _sentence(random: np.random.Generator, drawn: Any) -> str:
    parts = [SUBJECTS[random.integers(len(SUBJECTS))], *(next(drawn) for _ in range(random.integers(1, 3)))]
    for _ in range(random.integers(1, LONGEST + 1)):
        parts += [LINKS[random.integers(len(LINKS))], *(next(drawn) for _ in range(random.integers(1, 3)))]
    return " ".join(parts) + ("." if random.random() < 0.5 else "")


def vocabulary_prompts(spec: TokenizerSpec, count: int, seed: int = 0) -> list[str]:
    """Every whole word in each template, then `count` texts made up of them.

    Raises:
        ValueError: As for `whole_words`.
    """
    words = whole_words(spec)
    lines = [template.format(word) for template in TEMPLATES for word in words]
    return list(dict.fromkeys([*lines, *made_up(words, count, seed)]))
