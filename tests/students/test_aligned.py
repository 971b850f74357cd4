"""A token table in another tokenizer's words, from parallel captions alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_distill.students.aligned import translate_table, translation_table
from clip_distill.students.inherit import inherit
from clip_distill.students.text import transformer
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.ragged import Ragged, starts
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.tokens.trained import train

WORDS = {"red": "红", "blue": "蓝", "green": "绿", "dog": "狗", "cat": "猫", "house": "屋"}
PAIRS = [(f"a {colour} {what}", WORDS[colour] + WORDS[what]) for colour in list(WORDS)[:3] for what in list(WORDS)[3:]]


def rows(*texts: list[int]) -> Ragged:
    """Tokens between the ends 1 and 2."""
    flat = np.concatenate([[1, *text, 2] for text in texts]).astype(np.uint16)
    return Ragged(flat, starts(np.array([len(text) + 2 for text in texts])))


def test_the_first_step_of_the_em_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_distill.students.aligned.ITERATIONS", 1)
    own, theirs, probability = translation_table(rows([10, 11], [10]), rows([20, 21], [20]))
    # token 20 is explained alike by nothing, 10 and 11 in the first pair (1/3 each), by nothing and 10 in the second
    found = dict(zip(zip(own.tolist(), theirs.tolist(), strict=True), probability.tolist(), strict=True))
    assert found == pytest.approx({(10, 20): 5 / 7, (10, 21): 2 / 7, (11, 20): 1 / 2, (11, 21): 1 / 2})


def test_words_are_told_apart_by_the_captions_that_they_stand_in() -> None:
    own, theirs, probability = translation_table(rows([10, 11], [10, 12], [13, 11]), rows([20, 21], [20, 22], [23, 21]))
    best = {int(token): int(theirs[own == token][probability[own == token].argmax()]) for token in np.unique(own)}
    assert best == {10: 20, 11: 21, 12: 22, 13: 23}


def test_a_token_gets_the_rows_that_it_translates_and_the_ends_theirs(tiny_teacher: str) -> None:
    source, teacher = load_teacher(tiny_teacher, "text")
    spec = train([chinese for _, chinese in PAIRS], 300)
    clip = TokenizerSpec(**source.tokenizer)
    originals = tokenize(clip, [english for english, _ in PAIRS])
    translations = tokenize(spec, [chinese for _, chinese in PAIRS])
    new, translated = translate_table(source, teacher, spec.as_dict(), originals, translations)
    assert new.tokenizer == spec.as_dict()
    before, after = (each.get_parameter("token_embedding.weight").detach() for each in (teacher, translated))
    assert after.shape == (spec.vocab_size, before.shape[1])
    assert torch.equal(after[[1, 2]], before[[49406, 49407]])
    assert torch.allclose(after[0], before.mean(0))  # padding stands in no caption
    centred = torch.nn.functional.normalize(before - before.mean(0), dim=1)
    for english, chinese in WORDS.items():
        last = int(tokenize(spec, [chinese]).flat[-2])
        row = torch.nn.functional.normalize(after[last] - before.mean(0), dim=0)
        words = [int(tokenize(clip, [word]).flat[1]) for word in WORDS]
        assert list(WORDS)[int((centred[words] @ row).argmax())] == english
    tower, student = transformer(
        source.teacher, transformer_width=32, transformer_layers=2, transformer_heads=2, tokenizer=spec.as_dict()
    )
    assert "inherited 29 of 29 tensors" in inherit(tower, student, new, translated)
    assert torch.equal(student.get_parameter("token_embedding.weight"), after)
