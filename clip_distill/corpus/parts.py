"""Which parts of the data a teacher is run over: what is asked for, as far as it is there."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from clip_distill.corpus.layout import Corpus
from clip_distill.system.errors import NotFound
from clip_distill.system.talk import say

Split = Literal["train", "val"]
Tower = Literal["image", "text"]


def parts_there(corpus: Corpus, wanted: list[tuple[Tower, Split]]) -> list[tuple[Tower, Split]]:
    """The wanted parts that are there; what is missing and not needed is said.

    Training needs one tower's photos or captions: the other tower's, and those to validate on, may be missing, unless
    nothing else was asked for.

    Raises:
        NotFound: None of what was asked for is there.
    """
    found, missing = [], []
    for tower, split in wanted:
        try:
            items_of(corpus, tower, split)
            found.append((tower, split))
        except NotFound as error:
            missing.append((tower, split, error))
    first = "train" if any(split == "train" for _, split in wanted) else "val"
    if not any(split == first for _, split in found):
        raise next(error for _, split, error in missing if split == first)
    for tower, split, _ in missing:
        what = "photos" if tower == "image" else "captions"
        say(f"no {what} to {'train on' if split == 'train' else 'validate on'}: not embedded")
    if any(split == "val" for _, split, _ in missing):
        say("`fit` then holds out a share of what it trains on, and measures the student by that (--holdout)")
    return found


def items_of(corpus: Corpus, tower: str, split: str) -> pa.Table:
    """One row per photo, or per unique caption, of a split.

    Raises:
        NotFound: There are none.
    """
    data = corpus.train if split == "train" else corpus.val
    if tower == "image":
        return data.require_images()
    return pa.table({"id": data.require_captions().column("text").unique()})
