"""What a loaded model asks of a tower, whatever runs it.

Shapes: B batch, S image side, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Encoder(Protocol):
    """One tower, ready to run.

    Attributes:
        embed_dim: D.
        teacher: The teacher's record; empty where nothing says which one it is.
        preprocess: open_clip's `preprocess_cfg` of an image tower; empty of a text tower.
    """

    embed_dim: int
    teacher: dict[str, Any]
    preprocess: dict[str, Any]

    def images(self, pixels: Sequence[Pixels], device: str | None) -> Floats:
        """uint8 [S, S, 3] each, as the plain view has them → float32 [B, D], not normalised."""

    def for_threads(self) -> Encoder | None:
        """The same tower, to be called by several threads at once, each on a core of its own; None where one call at a
        time uses the machine best."""

    def texts(self, texts: Sequence[str], batch_size: int, device: str | None) -> Floats:
        """float32 [N, D] in the order of the texts, not normalised."""
