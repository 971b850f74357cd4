"""What is asked: "2:dog -cat" is twice dog, less cat; and what a photo adds.

Shapes: D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_distill.system.errors import InvalidValue

# a sign or a weight that begins a term; a hyphen within a word, or a time such as 10:30, begins none
_BEGIN = re.compile(r"(?:^|(?<=\s))(?:([+-])\s*)?(?:(\d+(?:\.\d+)?):(?!\d))?\s*(?=\S)")
MOST, HEAVIEST = 1000, 1000  # characters; weight of a term
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Term:
    """Words and their weight, which is negative where they are unwanted."""

    words: str
    weight: float = 1.0


def terms_of(question: str) -> list[Term]:
    """Split a question at its signs and weights; words without one are a single term.

    Raises:
        InvalidValue: It is too long, or a weight too large.
    """
    if len(question) > MOST:
        raise InvalidValue(f"expected a question of at most {MOST} characters, found {len(question)}")
    begins = [m for m in _BEGIN.finditer(question) if m[1] or m[2] or not question[: m.start()].strip()]
    found = []
    for place, begin in enumerate(begins):
        end = begins[place + 1].start() if place + 1 < len(begins) else len(question)
        words = " ".join(question[begin.end() : end].split())
        weight = float(begin[2] or 1) * (-1 if begin[1] == "-" else 1)
        if abs(weight) > HEAVIEST:
            raise InvalidValue(f"expected weights of at most {HEAVIEST:,}, found {begin[2][:20]}")
        if words.strip("+-") and weight:
            found.append(Term(words, weight))
    return found


def combined(vectors: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """[D] of unit length: the weighted sum of vectors of unit length.

    Raises:
        InvalidValue: They cancel each other.
    """
    total = np.sum([weight * vector for vector, weight in zip(vectors, weights, strict=True)], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise InvalidValue("expected words that mean something together, found that they cancel each other")
    return (total / length).astype(np.float32)
