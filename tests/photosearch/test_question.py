"""Questions: signs, weights, and words that only look like them."""

from __future__ import annotations

import numpy as np
import pytest

from clip_distill.photosearch.question import Term, combined, terms_of
from clip_distill.system.errors import InvalidValue


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("a dog on a beach", [("a dog on a beach", 1)]),
        ("2:dog -cat", [("dog", 2), ("cat", -1)]),
        ("dog on sand -3:cat on a sofa + 0.5:sea", [("dog on sand", 1), ("cat on a sofa", -3), ("sea", 0.5)]),
        ("black-and-white photo", [("black-and-white photo", 1)]),
        ("clock at 10:30", [("clock at 10:30", 1)]),
        ("-cat", [("cat", -1)]),
        ("  一只狗  -猫 ", [("一只狗", 1), ("猫", -1)]),
        ("dog - cat", [("dog", 1), ("cat", -1)]),
        ("2 dogs", [("2 dogs", 1)]),
        ("dog 0:cat", [("dog", 1)]),
        ("", []),
        (" - + ", []),
    ],
)
def test_a_question_is_its_terms(question: str, terms: list[tuple[str, float]]) -> None:
    assert terms_of(question) == [Term(*term) for term in terms]


def test_a_question_has_an_end() -> None:
    with pytest.raises(InvalidValue, match="weights of at most 1,000, found 99999"):
        terms_of("9" * 400 + ":dog")
    with pytest.raises(InvalidValue, match="at most 1000 characters, found 1001"):
        terms_of("a" * 1001)


def test_vectors_are_added_by_weight() -> None:
    first, second = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(combined([first, second], [3, -4]), [0.6, -0.8], rtol=1e-6)
    with pytest.raises(InvalidValue, match="cancel each other"):
        combined([first, first], [1, -1])
