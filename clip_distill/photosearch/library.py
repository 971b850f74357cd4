"""The photos of an index in memory: asked with a vector, they answer in the order of their cosines.

Shapes: N photos, D embedding, K answers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_distill.photosearch.index import Contents, Floats, Index

SAME = 0.97  # cosine from which on photos are folded into one
DEEPEST = 500  # answers that are looked through for near-duplicates, at least


@dataclass(frozen=True)
class Filter:
    """Which photos may answer.

    Args:
        folder: Those in it, and in folders within it.
        since: Taken on this day or later, 20261129.
        until: Taken on this day or earlier.
    """

    folder: str | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True)
class Answer:
    """A photo that was found.

    Args:
        id: Of the index.
        path: Where it lies.
        score: Cosine with what was asked.
        taken: Its day.
        width: In pixels.
        height: In pixels.
        same: Ids of near-duplicates that were folded into it.
    """

    id: int
    path: str
    score: float
    taken: int
    width: int
    height: int
    same: tuple[int, ...] = ()


class Library:
    """All photos of an index; reloading it never stops a search that is going on.

    Args:
        index: The index.
    """

    def __init__(self, index: Index) -> None:
        self.index, self._lock = index, threading.Lock()
        self.reload()

    def reload(self) -> None:
        """Read the index anew."""
        with self._lock:  # one reader at a time: two would hold a third copy of the matrix
            contents = self.index.contents()
            code: dict[str, int] = {}
            codes = [code.setdefault(path.rpartition(os.sep)[0], len(code)) for path in contents.paths]
            self._state = contents, list(code), np.array(codes, np.int64)

    @property
    def folders(self) -> list[str]:
        """Every folder that holds a photo, sorted."""
        return sorted(self._state[1])

    def __len__(self) -> int:
        return len(self._state[0].ids)

    def vector(self, photo: int) -> Floats | None:
        """[D] of a photo; None where there is none of this id."""
        contents = self._state[0]
        row = int(np.searchsorted(contents.ids, photo))
        return contents.matrix[row] if row < len(contents.ids) and contents.ids[row] == photo else None

    def numbers(self) -> dict[str, int]:
        """Path → id of every photo."""
        contents = self._state[0]
        return dict(zip(contents.paths, contents.ids.tolist(), strict=True))

    def search(
        self,
        vector: Floats,
        count: int,
        first: int = 0,
        only: Filter = Filter(),
        fold: bool = True,
    ) -> list[Answer]:
        """The nearest photos, nearest first.

        Args:
            vector: [D], of unit length.
            count: K.
            first: Leave out so many before them.
            only: Which photos may answer.
            fold: Take photos that are nearly the same as one answer.
        """
        contents, names, codes = self._state
        scores = contents.matrix @ vector  # [N]
        rows = self._allowed(contents, names, codes, only)
        if rows is not None:
            scores = scores[rows]
        wanted = min(len(scores), max(DEEPEST, 2 * (first + count)) if fold else first + count)
        if not wanted:
            return []
        near = np.argpartition(scores, -wanted)[-wanted:] if wanted < len(scores) else np.arange(len(scores))
        near = near[np.lexsort((near, -scores[near]))]
        order = near if rows is None else rows[near]
        groups = folded(contents.matrix, order, first + count) if fold else [[int(row)] for row in order]
        values = dict(zip(order.tolist(), scores[near].tolist(), strict=True))
        return [self._answer(contents, group, values[group[0]]) for group in groups[first : first + count]]

    def latest(self, count: int, first: int = 0, only: Filter = Filter()) -> list[Answer]:
        """The photos taken last, the last first; their scores are 0.

        Args:
            count: K.
            first: Leave out so many before them.
            only: Which photos count.
        """
        contents, names, codes = self._state
        rows = self._allowed(contents, names, codes, only)
        rows = np.arange(len(contents.ids)) if rows is None else rows
        order = rows[np.lexsort((-contents.ids[rows], -contents.taken[rows]))][first : first + count]
        return [self._answer(contents, [int(row)], 0.0) for row in order]

    @staticmethod
    def _allowed(
        contents: Contents, names: Sequence[str], codes: NDArray[np.int64], only: Filter
    ) -> NDArray[np.int64] | None:
        """Rows that may answer; None for all."""
        if only == Filter():
            return None
        allowed = np.ones(len(contents.ids), bool)
        if only.folder is not None:
            inside = only.folder.rstrip(os.sep) + os.sep
            wanted = [code for code, name in enumerate(names) if (name + os.sep).startswith(inside)]
            allowed &= np.isin(codes, wanted)
        if only.since is not None:
            allowed &= contents.taken >= only.since
        if only.until is not None:
            allowed &= contents.taken <= only.until
        return np.flatnonzero(allowed)

    @staticmethod
    def _answer(contents: Contents, group: list[int], score: float) -> Answer:
        row, *same = group
        width, height = contents.sizes[row].tolist()
        ids = tuple(int(contents.ids[each]) for each in same)
        taken = int(contents.taken[row])
        return Answer(int(contents.ids[row]), contents.paths[row], float(score), taken, width, height, ids)


def folded(matrix: Floats, order: NDArray[np.int64], wanted: int) -> list[list[int]]:
    """Groups of rows, each with its near-duplicates, in the order of their first; as many groups as are wanted.

    Args:
        matrix: [N, D], of unit length.
        order: Rows, nearest first.
        wanted: Groups after which to stop, but for those that join the last.
    """
    groups: list[list[int]] = []
    firsts = np.empty((min(wanted, len(order)), matrix.shape[1]), np.float32)
    for row in order.tolist():
        near = firsts[: len(groups)] @ matrix[row]
        if len(near) and near.max() >= SAME:
            groups[int(near.argmax())].append(row)
        elif len(groups) < wanted:
            firsts[len(groups)] = matrix[row]
            groups.append([row])
        # beyond the last group only near-duplicates of those before it count
    return groups
