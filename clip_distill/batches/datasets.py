"""Batches for training and validation: (view or caption, stored teacher embedding), joined by id.

A dataset's item is a whole batch: the sampler names its rows and views (`batches.order`).
Shapes: N rows, B batch, L tokens of the batch's longest caption, S image side, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clip_distill.batches.order import Items
from clip_distill.batches.packed import Packed
from clip_distill.pixels.photos import BadImage, Photo, digest_of, read_bytes_of
from clip_distill.pixels.views import Views, stack
from clip_distill.store.table import Store
from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.ragged import Ragged


class Batch(NamedTuple):
    """What one step sees.

    Args:
        inputs: Of the student: pixels uint8 [B, 3, S, S] or tokens int64 [B, L].
        target: [B, D] stored teacher embeddings; None where the teacher runs online.
        teacher_inputs: The same views or captions as the teacher wants them; None where targets are stored.
        rows: [B] int64, which rows these are.
    """

    inputs: Tensor
    target: Tensor | None
    teacher_inputs: Tensor | None
    rows: Tensor


class Images(Dataset[Batch]):
    """Views of photos, with the stored embedding of the same view.

    Args:
        images: Table of `corpus.layout`, one row per photo, N rows.
        views: Renders the student's pixels.
        store: Teacher embeddings; None for online targets. Each photo must be the one that the teacher saw.
        store_rows: [N] where each photo is in the store.
        teacher_views: Renders the teacher's pixels, for online targets; None where they are the student's.
        online: Whether the teacher's pixels are wanted.
    """

    def __init__(
        self,
        images: pa.Table,
        views: Views,
        store: Store | None = None,
        store_rows: NDArray[np.int64] | None = None,
        teacher_views: Views | None = None,
        online: bool = False,
    ) -> None:
        self.images, self.views, self.store, self.store_rows = images, views, store, store_rows
        self.teacher_views, self.online = teacher_views, online
        self.packed: Packed | None = None
        self.digests: pa.Array | None = None  # [N] uint64, null where the store does not know
        if store is not None and store_rows is not None:
            self.digests = store.photos(store_rows).column("digest").combine_chunks()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, items: Items) -> Batch:
        rows, views = items.T.copy()
        teacher_inputs = None
        if self.packed is not None:
            inputs = self.packed.read(rows, views)
        else:
            pixels, theirs = zip(*(self._views(row, view) for row, view in items.tolist()), strict=True)
            inputs = stack(pixels)
            if self.online:
                teacher_inputs = inputs if self.teacher_views is None else stack(theirs)
        return Batch(inputs, stored(self.store, self.store_rows, rows, views), teacher_inputs, torch.from_numpy(rows))

    def render(self, row: int, views: range) -> Tensor:
        """uint8 [V, 3, S, S] of one photo; see `photo_of` for what is raised."""
        with self._photo(row) as (photo, id):
            return stack([self.views(photo, id, view) for view in views])

    def _views(self, row: int, view: int) -> tuple[Tensor, Tensor]:
        """The student's pixels, and the teacher's, which may be the same."""
        with self._photo(row) as (photo, id):
            mine = self.views(photo, id, view)
            return mine, mine if self.teacher_views is None else self.teacher_views(photo, id, view)

    def _photo(self, row: int) -> AbstractContextManager[tuple[Photo, str]]:
        # not `take`, which would go through all chunks of the table
        record = self.images.slice(row, 1).to_pylist()[0]
        return photo_of(record, None if self.digests is None else self.digests[row].as_py())


@contextmanager
def photo_of(record: dict[str, Any], digest: int | None = None) -> Iterator[tuple[Photo, str]]:
    """The photo of a row of `corpus.layout` and its id, to be decoded within; it must have this digest if one is known.

    Raises:
        ValueError: It could be read when the store was made and can't be now, or was never asked for (teacher online);
            or it is another photo than the store's.
    """
    try:
        content = read_bytes_of(record["path"], record["offset"], record["size"])
        if digest is not None and (found := digest_of(content)) != digest:
            raise InvalidValue(
                f"{record['path']}: expected the photo {record['id']!r} that the store's embedding is of (digest "
                f"{digest:016x}), found another one under its id (digest {found:016x}). Bring the old photo back, or "
                "run `clip-distill embed` on this data with another --store"
            )
        yield Photo(content), record["id"]
    except BadImage as error:
        raise InvalidValue(
            f"{record['path']}: expected the photo {record['id']!r}, found: {error.reason}. Put the photo back, "
            "or take it out of the data folder and go on with --resume true"
        ) from error


class Captions(Dataset[Batch]):
    """Unique captions as the student's tokens, with the stored embedding of each.

    Args:
        tokens: The student's, N rows.
        pad_id: Fills a row behind its caption's end.
        width: Pad to this many tokens; None cuts to the batch's longest, which a causal tower does not notice.
        store: Teacher embeddings; None for online targets.
        store_rows: [N] where each caption is in the store.
        teacher_tokens: The teacher's own, for online targets.
        teacher_pad: The teacher's (pad_id, width).
    """

    def __init__(
        self,
        tokens: Ragged,
        pad_id: int,
        width: int | None = None,
        store: Store | None = None,
        store_rows: NDArray[np.int64] | None = None,
        teacher_tokens: Ragged | None = None,
        teacher_pad: tuple[int, int | None] = (0, None),
    ) -> None:
        self.tokens, self.pad_id, self.width = tokens, pad_id, width
        self.store, self.store_rows = store, store_rows
        self.teacher_tokens, self.teacher_pad = teacher_tokens, teacher_pad

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, items: Items) -> Batch:
        rows = items[:, 0].copy()
        inputs = self.tokens.take(rows).pad(self.pad_id, self.width)
        teacher_inputs = None if self.teacher_tokens is None else self.teacher_tokens.take(rows).pad(*self.teacher_pad)
        return Batch(inputs, stored(self.store, self.store_rows, rows, 0), teacher_inputs, torch.from_numpy(rows))


def stored(
    store: Store | None, store_rows: NDArray[np.int64] | None, rows: NDArray[np.int64], views: NDArray[np.int64] | int
) -> Tensor | None:
    """float32 [B, D] of the dataset's rows."""
    if store is None or store_rows is None:
        return None
    return torch.from_numpy(store.embeddings(store_rows[rows], views)).float()
