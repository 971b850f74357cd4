"""Which photo and which caption belong together, as places in two tables.

Shapes: C captions of the data's files, P pairs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def places(needles: pa.ChunkedArray, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Where each needle is among the ids, -1 for nowhere; a null is nowhere."""
    known = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    found = pc.index_in(needles.cast(known.type), value_set=known)
    return np.asarray(found.fill_null(-1)).astype(np.int64)


def joined(mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.int64]:
    """[P, 2] of two places each [C], in order and each once; without those of which one is nowhere, -1."""
    return np.unique(np.stack([mine, theirs], axis=1)[(mine >= 0) & (theirs >= 0)], axis=0)
