"""Which layers static int8 leaves in float32."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from clip_distill.exports.writers.static import MOST_WIDE, leave_wide

GAINS = {"a": 0.001, "b": 0.004, "c": 0.0, "d": 0.003}
SIZES = {"a": 1000, "b": 1000, "c": 1, "d": 10}


def cosine_of(asked: list[list[str]]) -> object:
    def cosine(wide: Sequence[str]) -> float:
        asked.append(list(wide))
        return 0.985 + sum(GAINS.get(layer, 0.0) for layer in wide)

    return cosine


def test_layers_that_give_most_for_their_size_are_left_until_it_is_enough() -> None:
    asked: list[list[str]] = []
    assert leave_wide(cosine_of(asked), SIZES, 0.9915) == ["d", "b"]  # type: ignore[arg-type]
    assert asked == [[], ["a"], ["b"], ["c"], ["d"], ["d"], ["d", "b"]], "the file is of the last"


def test_none_where_all_is_near_and_some_where_nothing_is_enough() -> None:
    asked: list[list[str]] = []
    assert leave_wide(cosine_of(asked), SIZES, 0.98) == [] and asked == [[]]  # type: ignore[arg-type]
    many = {f"layer{number}": 1 for number in range(20)}
    assert len(leave_wide(cosine_of([]), many, 2.0)) == MOST_WIDE  # type: ignore[arg-type]
