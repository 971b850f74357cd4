"""Strings looked up among many: the answer is that of a dictionary, whatever the hashes and the sizes of parts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_distill.store import lookup
from clip_distill.store.lookup import find_in_parts

WORDS = st.text(alphabet="ab\0é", max_size=3)


def strings(values: list[str | None]) -> pa.Array:
    return pa.array(values, pa.large_string())


def by_dictionary(needles: list[str | None], among: list[str]) -> list[int]:
    places = {text: place for place, text in enumerate(among)}
    return [-1 if needle is None else places.get(needle, -1) for needle in needles]


def parts_of(among: list[str], rows: int) -> Iterator[pa.Array]:
    return (strings(among[start : start + rows]) for start in range(0, len(among), rows))


@given(st.lists(st.none() | WORDS), st.lists(WORDS, unique=True), st.integers(1, 5), st.integers(1, 5))
def test_places_are_those_of_a_dictionary(
    needles: list[str | None], among: list[str], rows: int, part_rows: int
) -> None:
    found = find_in_parts(strings(needles), parts_of(among, rows), part_rows)
    assert found.tolist() == by_dictionary(needles, among)


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_hashes", lambda texts: np.zeros(len(texts), np.int64))
    monkeypatch.setattr(lookup, "PAIRS", 7)
    among = [f"id {number}" for number in range(30)]
    needles = [*among[::-2], "nowhere", None, *among[:20:3], "id 4"]
    assert find_in_parts(strings(needles), parts_of(among, 30), 12).tolist() == by_dictionary(needles, among)


def test_one_string_asked_for_very_often_takes_sixteen_bytes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "PAIRS", 1000)
    monkeypatch.setattr(lookup, "BLOCK", 1000)
    count = 200_000
    needles, among = strings(["b"] * count), strings(["a", "b"])
    tracemalloc.start()
    try:
        found = find_in_parts(needles, iter([among]), 10)
        most = tracemalloc.get_traced_memory()[1]  # of numpy and Python
    finally:
        tracemalloc.stop()
    assert (found == 1).all()
    assert most < 16 * count + 300_000
