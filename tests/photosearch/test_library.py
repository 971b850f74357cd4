"""Answers in memory: order, filters, pages and near-duplicates, against a naive oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_distill.photosearch.index import Facts, File, Index
from clip_distill.photosearch.library import Filter, Library, folded


def library(folder: Path, rows: np.ndarray[Any, Any], names: list[str] | None = None) -> Library:
    index = Index(folder, {"student": "s", "dim": rows.shape[1]})
    names = names or [f"/p/{number}.jpg" for number in range(len(rows))]
    days = [20260101 + number for number in range(len(rows))]
    index.add((Facts(File(name, 1, 1), 0, day, 4, 3), row) for name, day, row in zip(names, days, rows, strict=True))
    return Library(index)


@pytest.fixture(scope="module")
def rows() -> np.ndarray[Any, Any]:
    found = np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("fold", [True, False])
def test_pages_together_are_all_photos_in_order(fold: bool, rows: np.ndarray[Any, Any], tmp_path: Path) -> None:
    photos = library(tmp_path, rows)
    pages = [answer for first in range(0, 300, 70) for answer in photos.search(rows[3], 70, first, fold=fold)]
    expected = np.argsort(-(photos._state[0].matrix @ rows[3]), kind="stable") + 1
    assert [answer.id for answer in pages] == expected.tolist()
    scores = [answer.score for answer in pages]
    assert scores == sorted(scores, reverse=True) and pages[0].id == 4 and pages[0].score == pytest.approx(1, abs=1e-3)
    assert photos.search(rows[3], 10, 300) == []


def test_filters_by_folder_and_day(rows: np.ndarray[Any, Any], tmp_path: Path) -> None:
    names = ["/p/a/1.jpg", "/p/a/b/2.jpg", "/p/ab/3.jpg", "/p/4.jpg"]
    photos = library(tmp_path, rows[:4], names)

    def found(**only: Any) -> set[int]:
        return {answer.id for answer in photos.search(rows[0], 10, only=Filter(**only))}

    assert found() == {1, 2, 3, 4}
    assert found(folder="/p/a") == {1, 2} and found(folder="/p/a/") == {1, 2} and found(folder="/p/ab") == {3}
    assert found(since=20260103) == {3, 4} and found(until=20260102) == {1, 2}
    assert found(folder="/p/a", since=20260102) == {2} and found(folder="/q") == set()
    assert photos.folders == ["/p", "/p/a", "/p/a/b", "/p/ab"]
    assert [answer.id for answer in photos.latest(2, 1)] == [3, 2]


def test_near_duplicates_are_one_answer(rows: np.ndarray[Any, Any], tmp_path: Path) -> None:
    near = rows[0] + 0.02 * rows[1]
    some = np.stack([rows[0], rows[5], near / np.linalg.norm(near), rows[9]])
    photos = library(tmp_path, some)
    answers = photos.search(rows[0], 4)
    assert answers[0].id == 1 and answers[0].same == (3,) and len(answers) == 3
    assert len(photos.search(rows[0], 4, fold=False)) == 4


def test_groups_by_hand() -> None:
    matrix = np.eye(3, dtype=np.float32)[[0, 1, 0, 2, 1]]
    assert folded(matrix, np.arange(5), 2) == [[0, 2], [1, 4]]
    assert folded(matrix, np.arange(5), 9) == [[0, 2], [1, 4], [3]]


def test_a_photo_by_its_number(rows: np.ndarray[Any, Any], tmp_path: Path) -> None:
    photos = library(tmp_path, rows[:2])
    vector = photos.vector(2)
    assert vector is not None and vector @ rows[1] > 0.999
    assert photos.vector(0) is None and photos.vector(3) is None and len(photos) == 2


def test_an_empty_library_answers_nothing(tmp_path: Path) -> None:
    photos = library(tmp_path, np.empty((0, 16), np.float32))
    assert photos.search(np.ones(16, np.float32), 5) == [] and photos.latest(5) == [] and photos.folders == []
