"""What a run reads of its store: the tables it trains and validates on, and those that its losses compare with.

Losses on a bank or on pairs compare a student with more than its own target: with the teacher's other tower.
Shapes: K rows of the bank, D embedding.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clip_distill.batches.datasets import Captions, Images
from clip_distill.batches.pairs import Pairs, find_pairs
from clip_distill.corpus.layout import Corpus
from clip_distill.losses import needed
from clip_distill.recipe import Loss, Recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError, require_same, teacher_fingerprint
from clip_distill.store.table import Store
from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import TOWERS, Tower
from clip_distill.train.prompted import text_table


@dataclass(frozen=True)
class Tables:
    """All that a run reads, of one teacher.

    Args:
        val: Both towers' validation tables; none where rows of the training are held out.
        train: The training tables of the towers that are trained, and of those that losses compare with.
    """

    val: Mapping[Tower, Store]
    train: Mapping[Tower, Store]

    def teacher(self, tower: Tower) -> dict[str, Any]:
        """The teacher's record, as the table of this tower has it."""
        tables = [each[tower] for each in (self.val, self.train) if tower in each]
        return (tables or list(self.val.values()))[0].manifest.teacher


def other(tower: Tower) -> Tower:
    return "text" if tower == "image" else "image"


def open_tables(recipe: Recipe, held_out: bool = False, captions: int = 0) -> Tables:
    """Open every table that the run reads, once, and check that one teacher made them.

    Args:
        recipe: The run.
        held_out: The data has nothing to validate on, so that rows of the training table are held out.
        captions: How many the data has to train on.

    Raises:
        StoreError: A table is missing or unfinished, or another teacher made it.
        ValueError: There is no such loss.
    """
    val = {} if held_out else validation_tables(recipe)
    own: list[Tower] = list(TOWERS) if recipe.tower == "both" else [recipe.one]
    wanted: list[Tower] = own if recipe.target == "stored" or held_out else []
    if recipe.target == "photo":
        wanted = ["image"]
    train = {
        tower: text_table(recipe, captions) if tower == "text" else open_table(recipe.store, tower, "train")
        for tower in wanted
    }
    if needed(recipe.loss.names):
        train |= {other(tower): _compared_with(recipe, other(tower)) for tower in own if other(tower) not in train}
    for table in train.values():
        require_teacher(table, train[wanted[0]] if held_out else val["image"])
    return Tables(val, train)


def is_foreign(recipe: Recipe) -> bool:
    """Whether a text student may read a language that its teacher does not."""
    return bool(recipe.translations) or recipe.target == "photo"


def validation_tables(recipe: Recipe) -> dict[Tower, Store]:
    """What a run is validated by: photos and captions, or for a student of another language the photos alone.

    Raises:
        StoreError: A table is missing or unfinished.
    """
    tables: dict[Tower, Store] = {"image": open_table(recipe.store, "image", "val")}
    with suppress(StoreError) if is_foreign(recipe) else nullcontext():
        tables["text"] = open_table(recipe.store, "text", "val")
    return tables


def _compared_with(recipe: Recipe, tower: Tower) -> Store:
    """The training table of the tower that is not trained."""
    try:
        return open_table(recipe.store, tower, "train")
    except StoreError as error:
        names = " and ".join(name for name in recipe.loss.names if needed([name]))
        store = shlex.quote(recipe.store)
        raise StoreError(
            f"{names}: expected the teacher's {tower} embeddings to compare with. {error}\n"
            f"Here: clip-distill embed --data … --teacher … --store {store} --tower {tower} --split train"
        ) from error


def require_teacher(train: Store, val: Store) -> None:
    """Training and validation tables must be of one teacher."""
    require_same(
        f"{train.folder}, beside {val.folder.name},",
        teacher_fingerprint(val.manifest.teacher),
        teacher_fingerprint(train.manifest.teacher),
        "Run `clip-distill embed` for both splits with one teacher, into one --store.",
    )


def draw_bank(loss: Loss, tables: Tables, tower: Tower, seed: int) -> dict[str, Tensor]:
    """What a tower's losses need beside the batch: a bank [K, D] of the other tower's training table, or nothing.

    Args:
        loss: The recipe's.
        tables: What the run reads.
        tower: That is trained.
        seed: Draws the rows, the same in every process and after an interruption.

    Raises:
        ValueError: The bank is to have no rows.
    """
    if "bank" not in needed(loss.names):
        return {}
    if loss.bank < 1:
        raise InvalidValue(f"expected --loss.bank of 1 or more, found {loss.bank}")
    store = tables.train[other(tower)]
    rows = np.random.default_rng(seed).choice(len(store), min(loss.bank, len(store)), replace=False)
    return {"bank": torch.from_numpy(store.embeddings(rows)).float()}


def open_pairs(recipe: Recipe, tables: Tables, corpus: Corpus, train: Images | Captions) -> Pairs | None:
    """What the training set's rows are paired with, where a loss needs it.

    Raises:
        ValueError: There are no pairs, or mixup would mix them.
    """
    if "pair" not in needed(recipe.loss.names):
        return None
    if recipe.mixup:
        raise InvalidValue("icl, pair_affinity: expected --mixup 0: a mix of two photos has no caption")
    captions = corpus.train.require_captions()
    if isinstance(train, Images):
        ids = train.images.column("id")
    elif train.store is not None:
        ids = train.store.ids.take(pa.array(train.store_rows))
    else:
        ids = captions.column("text").unique()
    return find_pairs(recipe.one, ids, captions, tables.train[other(recipe.one)], recipe.seed)
