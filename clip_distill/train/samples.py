"""The data sets of a run: what the student sees, joined by id with what the store has of it.

Shapes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clip_distill.batches.datasets import Captions, Images
from clip_distill.batches.pack import pack_images
from clip_distill.corpus.layout import Corpus
from clip_distill.corpus.report import Skips
from clip_distill.pixels.views import Views
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.ragged import Ragged
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec
from clip_distill.train.student import same_tokenizer
from clip_distill.train.validation import say_missing

LACKING = "original that the store lacks"


@dataclass(frozen=True)
class OnlineTarget:
    """The teacher of `target: online`, as far as data goes; `Distiller` runs it.

    Args:
        spec: The teacher's tower.
        augment: Augmentation of the online views.
    """

    spec: TowerSpec
    augment: str


def make_images(
    spec: TowerSpec,
    corpus: Corpus,
    store: Store | None,
    val_rows: pa.Table,
    seed: int,
    online: OnlineTarget | None = None,
) -> tuple[Images, Images, int]:
    """Photos to train on, those of `val_rows` to validate, and how many stored views there are; 0 for online ones."""
    photos = corpus.train.require_images()
    plain = Views(spec.preprocess)
    val = Images(val_rows, plain)  # without a store: validation has its targets already
    val.digests = val_rows.column("digest").combine_chunks()
    if online is not None:
        views = Views(spec.preprocess, online.augment, seed)
        same = spec.preprocess == online.spec.preprocess
        theirs = None if same else Views(online.spec.preprocess, online.augment, seed)
        return Images(photos, views, teacher_views=theirs, online=True), val, 0
    assert store is not None
    rows = _known(store, photos.column("id"))
    photos, rows = photos.filter(pa.array(rows >= 0)), rows[rows >= 0]
    views = Views(spec.preprocess, store.manifest.augment, store.manifest.seed)
    return Images(photos, views, store, rows), val, store.manifest.views


def pack_loader(folder: str, train: Images | Captions, val: Images | Captions, views: int) -> None:
    """Have both data sets read from packed copies below a folder, made where they are not there yet.

    Raises:
        ValueError: There is nothing to pack: captions, or a fresh view each epoch.
        StoreError: The folder holds copies of something else, or the disk has not enough room.
    """
    if isinstance(train, Captions) or isinstance(val, Captions) or not views:
        found = "--tower text" if isinstance(train, Captions) else "--target online, where every epoch has new views"
        raise InvalidValue(f"loader.packed: expected photos with stored targets, found {found}. Leave it out")
    train.packed = pack_images(Path(folder) / "train", train, views)
    val.packed = pack_images(Path(folder) / "val", val, 1)


def make_captions(
    spec: TowerSpec,
    corpus: Corpus,
    store: Store | None,
    val_rows: pa.Table,
    online: OnlineTarget | None = None,
) -> tuple[Captions, Captions, int]:
    """Captions to train on, those of `val_rows` to validate, and 1 view, or 0 where the teacher runs online."""
    captions = corpus.train.require_captions()
    tokenizer = TokenizerSpec(**spec.tokenizer)
    pad, width = tokenizer.pad_id, None if spec.causal else tokenizer.context_length
    val = Captions(tokenize(tokenizer, val_rows.column("id").to_pylist()), pad, width)
    if online is not None:
        theirs = TokenizerSpec(**online.spec.tokenizer)
        texts = captions.column("text").unique().to_pylist()
        teacher_pad = (theirs.pad_id, None if online.spec.causal else theirs.context_length)
        mine = tokenize(tokenizer, texts)
        return Captions(mine, pad, width, teacher_tokens=tokenize(theirs, texts), teacher_pad=teacher_pad), val, 0
    assert store is not None
    if "original" in captions.column_names:
        texts, rows = with_targets(captions, store)
        return Captions(tokenize(tokenizer, texts), pad, width, store, rows), val, 1
    rows = _known(store, captions.column("text").unique())
    rows = rows[rows >= 0]
    return Captions(student_tokens(tokenizer, store, rows), pad, width, store, rows), val, 1


def make_photo_captions(
    spec: TowerSpec, corpus: Corpus, photos: Store, val_rows: pa.Table
) -> tuple[Captions, Captions, int]:
    """Captions whose targets are their photos' embeddings, those of `val_rows` to validate, and 1 view.

    Raises:
        StoreError: No caption belongs to a photo of the store.
    """
    captions = corpus.train.require_captions()
    paired = captions.filter(pc.is_valid(captions.column("image_id")))
    rows = photos.find(paired.column("image_id")) if len(paired) else np.empty(0, np.int64)
    if not (rows >= 0).any():
        raise StoreError(
            f"{photos.folder}: expected photos with captions, found none of {len(captions):,} captions that names one "
            "of the store's. --target photo needs pairs: give --sources.train_captions a file that names the photos"
        )
    texts = paired.column("text").filter(pa.array(rows >= 0)).to_pylist()
    say(f"{len(texts):,} captions are to find their photos")
    tokenizer = TokenizerSpec(**spec.tokenizer)
    pad, width = tokenizer.pad_id, None if spec.causal else tokenizer.context_length
    val = Captions(tokenize(tokenizer, val_rows.column("id").to_pylist()), pad, width)
    return Captions(tokenize(tokenizer, texts), pad, width, photos, rows[rows >= 0]), val, 1


def with_targets(captions: pa.Table, store: Store) -> tuple[list[str], NDArray[np.int64]]:
    """The training captions of `with_translations` whose originals the store has, and the row of each original [N].

    Raises:
        StoreError: It has none of them.
    """
    rows = store.find(captions.column("original"))
    lacking = captions.filter(pa.array(rows < 0))
    if len(lacking):
        first = lacking.column("original")[0].as_py()
        fix = "`clip-distill embed --sources.train_captions FILE …` adds the originals in a TSV's first column"
        if len(lacking) == len(captions):
            raise StoreError(
                f"{store.folder}: expected the originals of the translations, found none of {len(captions):,} (the "
                f"first is {first!r}). Are they in the other column (--translations_columns '[2, 1]')? {fix}"
            )
        skips = Skips({LACKING: len(lacking)}, {LACKING: repr(first)})
        say("translations:", *skips.lines(), f"  {fix}")
    return captions.column("text").filter(pa.array(rows >= 0)).to_pylist(), rows[rows >= 0]


def student_tokens(tokenizer: TokenizerSpec, store: Store, rows: NDArray[np.int64]) -> Ragged:
    """The student's tokens of the given captions: the store's own where the tokenizer is the teacher's."""
    theirs = store.manifest.teacher["tokenizer"]
    if same_tokenizer(tokenizer.as_dict(), theirs) and tokenizer.context_length <= theirs["context_length"]:
        return store.tokens.take(rows).truncate(tokenizer.context_length)
    return tokenize(tokenizer, store.ids.take(pa.array(rows)).to_pylist())


def _known(store: Store, ids: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Store row of each id, -1 for those that it lacks; none at all is an error, some are said."""
    rows = store.find(ids)
    missing = int((rows < 0).sum())
    if missing == len(rows):
        first = ids[0].as_py() if len(ids) else "nothing"
        raise StoreError(
            f"{store.folder}: expected the data's {store.manifest.tower}s, found none of {len(rows)} (the first is "
            f"{first!r}). Is --data the folder that the store was made from?"
        )
    say_missing(store, missing)
    return rows
