"""For runtimes whose files take one sample a time, on the CPU.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_distill.runtimes import Opened
from clip_distill.system.errors import InvalidValue


def one_by_one(run: Callable[[NDArray[Any]], Any], device: str) -> Opened:
    """A function of one sample [1, …] → [1, D] as one of a batch."""
    require_cpu(device)
    return Opened(lambda inputs: np.concatenate([np.array(run(row[None]), np.float32) for row in inputs]), "cpu")


def require_cpu(device: str) -> None:
    """
    Raises:
        InvalidValue: Another device is asked for.
    """
    if device not in ("auto", "cpu"):
        raise InvalidValue(f"device {device!r}: expected auto or cpu for this runtime's files")
