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


def find_photos(names: pa.Array, ids: pa.Array) -> pa.Array:
    """The photo of each caption.

    A name is looked for among the ids themselves, then among ids without their source's folder, then among base names,
    last, for shards, without its extension. Where several photos fit, none is taken.

    Args:
        names: [N] file names as caption files give them; null for a caption without a photo.
        ids: [M] ids of the split's photos.

    Returns:
        [N] ids, null where there is no photo of that name.
    """
    relative = pc.replace_substring_regex(ids, r"^[^/]*/", "")
    base = _only_once(pc.replace_substring_regex(ids, r"^.*/", ""))
    needles = pc.replace_substring_regex(names, r"^.*/", "")
    stems = pc.replace_substring_regex(needles, r"\.[^.]*$", "")
    rows = pc.index_in(names, value_set=ids)
    for wanted, among in ((names, _only_once(relative)), (needles, base), (stems, base)):
        rows = pc.coalesce(rows, pc.index_in(wanted, value_set=among, skip_nulls=True))
    return ids.take(rows)


def _only_once(values: pa.Array) -> pa.Array:
    """The same array with null for every value that it holds more than once."""
    counts = values.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return pc.if_else(pc.is_in(values, value_set=repeated), None, values)
