"""From a recipe of `tower: both` to its parts: pairs, validation, objective, joined into a BothDistiller and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from torch import nn

from clip_distill.batches.datasets import LoaderOptions
from clip_distill.batches.photo_captions import PairData, couple
from clip_distill.corpus.layout import Corpus
from clip_distill.losses import WeightedSum
from clip_distill.losses.both import BETWEEN, BothSum
from clip_distill.recipe import Recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.table import Store
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec
from clip_distill.train.assemble import make_captions, make_images, make_objective, pack_loader, scan_corpus
from clip_distill.train.bank import load_context, require_teacher
from clip_distill.train.distill_both import BothDistiller
from clip_distill.train.validation import load_both


def assemble_both(
    recipe: Recipe, students: Mapping[Tower, tuple[TowerSpec, nn.Module]]
) -> tuple[BothDistiller, PairData]:
    """Build everything that `Trainer.fit` takes.

    Args:
        recipe: The run, of tower both.
        students: Tower → the student that was distilled already, in the teacher's embedding space.

    Raises:
        StoreError: The store is missing, unfinished, of another teacher, or lacks the data's rows.
        ValueError: An option does not fit, or there are no pairs.
    """
    corpus = _with_photos(scan_corpus(recipe))
    val_images, val_texts = (open_table(recipe.store, tower, "val") for tower in TOWERS)
    images, texts = (open_table(recipe.store, tower, "train") for tower in TOWERS)
    for table in (images, texts):
        require_teacher(table, val_images)
    teacher = val_images.manifest.teacher
    # a model that `fit` did not train says nothing of its teacher; from now on it is this one
    taught = {
        tower: (replace(spec, teacher=spec.teacher or teacher), module) for tower, (spec, module) in students.items()
    }
    validation, photo_rows, caption_rows = load_both(val_images, val_texts, corpus.val)
    photos, val_photos, views = make_images(taught["image"][0], corpus, images, photo_rows, recipe, None)
    captions, val_captions, _ = make_captions(taught["text"][0], corpus, texts, caption_rows, recipe, None)
    loader = recipe.loader
    if loader.packed is not None:
        pack_loader(loader.packed, photos, val_photos, views)
    pairs = couple(photos, captions, corpus.train.require_captions())
    options = LoaderOptions(loader.batch_size, loader.val_batch_size, loader.workers)
    objective = make_both_objective(recipe, {"image": val_images, "text": val_texts})
    module = BothDistiller(taught, objective, recipe.optimizer, validation)
    return module, PairData(pairs, (val_photos, val_captions), views, options, recipe.seed)


def _with_photos(corpus: Corpus) -> Corpus:
    """Less the training captions without a photo, which would be looked up and tokenised for nothing."""
    captions = corpus.train.require_captions()
    paired = captions.filter(pc.is_valid(captions.column("image_id")))
    if not len(paired):
        return corpus  # `couple` says what is wrong
    return replace(corpus, train=replace(corpus.train, captions=paired))


def make_both_objective(recipe: Recipe, own: Mapping[Tower, Store]) -> BothSum:
    """Each tower's losses, with the bank of the other tower where they need one, and those between the students.

    Args:
        recipe: The run; where it names no temperature for the losses in BETWEEN, they get the teacher's.
        own: Tower → a table of that tower.
    """
    loss = recipe.loss
    options = {name: given for name, given in loss.options.items() if name not in loss.between}
    sides: dict[Tower, WeightedSum] = {
        tower: make_objective(replace(loss, options=options), load_context(recipe.of_one(tower), own[tower]))
        for tower in TOWERS
    }
    temperature: dict[str, Any] = {"temperature": 1 / own["image"].manifest.teacher["logit_scale"]}
    between = {name: (temperature if name in BETWEEN else {}) | loss.options.get(name, {}) for name in loss.between}
    return BothSum(sides["image"], sides["text"], loss.between, between)
