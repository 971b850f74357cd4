"""A map that gives a teacher's embeddings fewer numbers, as a file beside the store that it made.

    STORE/reduce.safetensors      `map` [D, K] float32, of orthonormal columns; metadata `parent` (the teacher's name)
                                  and `parent_sha256` (of its weights)

Shapes: D and K the parent's and the reduced embedding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from clip_distill.system.errors import InvalidValue, NotFound

MAP_FILE = "reduce.safetensors"
PREFIX = "reduced:"


@dataclass(frozen=True)
class Reduction:
    """A map to fewer numbers, and whose embeddings it takes.

    Args:
        map: [D, K] of orthonormal columns: `embeddings @ map` reduces, and cosines stay what they were as far as K
            directions can hold them.
        parent: The teacher's name.
        parent_sha256: Of its weights.
    """

    map: NDArray[np.float32]
    parent: str
    parent_sha256: str

    @property
    def weights_sha256(self) -> str:
        """What stands for the reduced teacher's weights: the parent's, and the map."""
        return hashlib.sha256(self.parent_sha256.encode() + self.map.astype("<f4").tobytes()).hexdigest()

    def teacher(self, parent: dict[str, Any], store: Path | str) -> dict[str, Any]:
        """The parent's record, as that of the reduced teacher whose map lies in `store`."""
        dim = self.map.shape[1]
        return parent | {
            "name": f"{PREFIX}{Path(store).absolute()}",
            "reduced_from": self.parent,
            "weights_sha256": self.weights_sha256,
            "embed_dim": dim,
            "model_cfg": parent["model_cfg"] | {"embed_dim": dim},
        }


def read_reduction(store: Path | str) -> Reduction:
    """The map in a reduced store.

    Raises:
        NotFound: There is none.
    """
    path = Path(store) / MAP_FILE
    if not path.is_file():
        raise NotFound(
            f"{path}: expected the map of a store that `clip-distill store reduce` wrote, found none. If the store was "
            f"moved, give --teacher {PREFIX}ITS_FOLDER"
        )
    with safetensors.safe_open(str(path), "numpy") as file:
        return Reduction(file.get_tensor("map"), **file.metadata())


def principal(spread: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """All D principal directions of embeddings whose covariance [D, D] is `spread`: [D, D], the greatest first."""
    _, vectors = np.linalg.eigh(spread)
    return np.ascontiguousarray(vectors[:, ::-1].astype(np.float64))


def map_to(dim: int, directions: NDArray[np.float64], seed: int = 0) -> NDArray[np.float32]:
    """[D, K] float32: the first K = `dim` directions, turned at random within their space.

    Raises:
        InvalidValue: K is not from 1 up to D.
    """
    width = len(directions)
    if not 1 <= dim <= width:
        raise InvalidValue(f"--dim: expected 1 up to the teacher's width {width}, found {dim}")
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return (directions[:, :dim] @ turn).astype(np.float32)
