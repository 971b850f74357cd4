"""Made-up texts beside a text student's captions, or in their place: `embed --prompts`, `fit --prompts SHARE`.

Shapes: N captions, P prompts.
"""

from __future__ import annotations

import shlex

from clip_distill.corpus.layout import Corpus
from clip_distill.evaluation.holdout import with_texts
from clip_distill.recipe import Recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.joined import Joined
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store


def open_prompts(store: str) -> Store:
    """The store's table of prompts.

    Raises:
        StoreError: There is none.
    """
    try:
        return open_table(store, "text", "prompts")
    except StoreError as error:
        raise StoreError(
            f"prompts: expected the teacher's embeddings of made-up texts. {error}\n"
            f"Here: clip-distill embed --teacher … --store {shlex.quote(store)} --prompts vocabulary"
        ) from error


def text_table(recipe: Recipe, captions: int) -> Store:
    """What a text student trains on: the captions' table, the prompts', or both as one.

    Args:
        recipe: The run.
        captions: N, how many the data has.

    Raises:
        StoreError: A table is missing, or they are of different teachers.
    """
    if not recipe.prompts:
        return open_table(recipe.store, "text", "train")
    prompts = open_prompts(recipe.store)
    return Joined([open_table(recipe.store, "text", "train"), prompts]) if captions else prompts


def with_prompts(corpus: Corpus, recipe: Recipe) -> Corpus:
    """The training captions, then all prompts, which belong to no photo."""
    return with_texts(corpus, open_prompts(recipe.store).ids)


def drawn_each_epoch(rows: int, captions: int, share: float) -> tuple[int, int] | None:
    """How many rows every epoch has, the captions', and how many of the others it draws; None for all of them.

    Args:
        rows: N + P.
        captions: N.
        share: Of an epoch's samples, for the prompts; fewer where there are not so many.
    """
    if not captions or share >= 1:
        return None
    return captions, min(rows - captions, round(captions * share / (1 - share)))
