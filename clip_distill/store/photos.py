"""Is the data still what a table was made from? What `embed` asks before it adds to a finished table."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_distill.pixels.photos import BadImage, read_image, size_of
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.system.paths import is_url, listed_sizes
from clip_distill.system.talk import progress

SHOWN = 10  # differences in an error message
CHUNK = 65536  # records held as Python objects at a time


def require_same_sizes(store: Store, images: pa.Table) -> None:
    """Compare the sizes of the files with those of the photos that the teacher saw, without reading one.

    Another photo of the very same size passes: `fit`, which reads the photos, compares their digests.

    Args:
        store: A finished table of images.
        images: Table of `corpus.layout`. Of photos behind a URL, their folders are listed; a web server's are not
            looked at.

    Raises:
        StoreError: Photos of another size lie under ids that the table has.
    """
    rows = store.find(images.column("id"))
    known = images.filter(pa.array(rows >= 0))
    expected = store.photos(rows[rows >= 0]).column("bytes").to_pylist()
    records = (record for batch in known.to_batches(CHUNK) for record in batch.to_pylist())
    changed = []
    listed = lru_cache(16)(listed_sizes)  # photos are sorted by id, so those of one folder come together
    for record, bytes in zip(progress(records, "sizes", len(known)), expected, strict=True):
        found = None if bytes is None else _size_of(record, listed)
        if found is not None and found != bytes:
            changed.append(f"{record['id']}: expected {bytes:,} bytes, found {found:,}")
    if changed:
        more = [f"… and {len(changed) - SHOWN:,} more"] if len(changed) > SHOWN else []
        raise StoreError(
            f"{store.folder}: {len(changed):,} photos are not those that its embeddings were made from:\n  "
            + "\n  ".join(changed[:SHOWN] + more)
            + "\nName another --store for other photos, or bring the old ones back."
        )


def _size_of(record: dict[str, Any], listed: Callable[[str], dict[str, int]]) -> int | None:
    """Bytes of a photo as it is encoded; None where nobody says."""
    if is_url(record["path"]) and record["offset"] < 0:
        folder, name = record["path"].rsplit("/", 1)
        return listed(folder).get(name)
    return size_of(record["path"], record["offset"], record["size"])


def readable(images: pa.Table) -> NDArray[np.bool_]:
    """[N] which photos can be read; `images` as `corpus.layout` has them, few enough to decode here."""
    return np.fromiter(map(_is_readable, progress(images.to_pylist(), desc="skipped photos")), bool, len(images))


def _is_readable(record: dict[str, str | int]) -> bool:
    try:
        read_image(str(record["path"]), int(record["offset"]), int(record["size"]))
    except BadImage:
        return False
    return True
