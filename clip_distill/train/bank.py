"""What losses need beside student and target: from the store's table of the teacher's other tower.

Shapes: N rows of the training set, K rows of the bank, D embedding.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clip_distill.batches.datasets import Captions, Images
from clip_distill.batches.pairs import Pairs, find_pairs
from clip_distill.corpus.layout import Corpus
from clip_distill.losses import needed
from clip_distill.recipe import Recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.table import Store, StoreError, require_same, teacher_fingerprint


def load_context(recipe: Recipe, own: Store) -> dict[str, Tensor]:
    """What the recipe's losses need: a bank [K, D], drawn from the other tower's training table, or nothing.

    Args:
        recipe: The run; its seed draws the rows, the same in every process and after an interruption.
        own: A table of the tower that is trained.

    Raises:
        StoreError: The store lacks that table, or another teacher made it.
    """
    loss = recipe.loss
    if "bank" not in needed(loss.names):
        return {}
    if loss.bank < 1:
        raise ValueError(f"expected --loss.bank of 1 or more, found {loss.bank}")
    store = other_table(recipe, own)
    rows = np.random.default_rng(recipe.seed).choice(len(store), min(loss.bank, len(store)), replace=False)
    return {"bank": torch.from_numpy(store.embeddings(rows)).float()}


def load_pairs(recipe: Recipe, own: Store, corpus: Corpus, train: Images | Captions) -> Pairs | None:
    """What the training set's rows are paired with, where a loss needs it.

    Raises:
        StoreError: The store lacks the other tower's training table, or another teacher made it.
        ValueError: There are no pairs, or mixup would mix them.
    """
    if "pair" not in needed(recipe.loss.names):
        return None
    if recipe.mixup:
        raise ValueError("icl, pair_affinity: expected --mixup 0: a mix of two photos has no caption")
    if isinstance(train, Images):
        ids = train.images.column("id")
    elif train.store is not None:
        ids = train.store.ids.take(pa.array(train.store_rows))
    else:
        ids = corpus.train.require_captions().column("text").unique()
    return find_pairs(recipe.one, ids, corpus.train.require_captions(), other_table(recipe, own), recipe.seed)


def other_table(recipe: Recipe, own: Store) -> Store:
    """The teacher's other tower's embeddings of the training split.

    Raises:
        StoreError: The store lacks that table, or another teacher made it.
    """
    other = "text" if recipe.tower == "image" else "image"
    try:
        store = open_table(recipe.store, other, "train")
    except StoreError as error:
        names = " and ".join(name for name in recipe.loss.names if needed([name]))
        raise StoreError(
            f"{names}: expected the teacher's {other} embeddings to compare with. {error}\n"
            f"Here: clip-distill embed --data … --teacher … --store {recipe.store} --tower {other} --split train"
        ) from error
    require_teacher(store, own)
    return store


def require_teacher(train: Store, val: Store) -> None:
    """Training and validation tables must be of one teacher."""
    require_same(
        f"{train.folder}, beside {val.folder.name},",
        teacher_fingerprint(val.manifest.teacher),
        teacher_fingerprint(train.manifest.teacher),
        "Run `clip-distill embed` for both splits with one teacher, into one --store.",
    )
