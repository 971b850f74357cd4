"""From a recipe to what `Trainer.fit` takes, station by station: corpus, tables, student, data sets, module.

Each station is opened once, takes its own part of the recipe, and is handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from torch import Tensor, nn

from clip_distill.batches.datasets import Captions, Images
from clip_distill.batches.loader import DistillData, LoaderOptions, PairData
from clip_distill.batches.photo_captions import couple
from clip_distill.corpus.layout import Corpus, scan
from clip_distill.corpus.translations import with_translations
from clip_distill.evaluation.holdout import HeldOut, hold_out
from clip_distill.losses import WeightedSum
from clip_distill.losses.both import BETWEEN, BothSum
from clip_distill.recipe import Loader, Loss, Recipe
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec
from clip_distill.train.distill import Distiller
from clip_distill.train.distill_both import BothDistiller
from clip_distill.train.prompted import drawn_each_epoch, with_prompts
from clip_distill.train.samples import OnlineTarget, make_captions, make_images, make_photo_captions, pack_loader
from clip_distill.train.student import build_student
from clip_distill.train.tables import Tables, draw_bank, is_foreign, open_pairs, open_tables
from clip_distill.train.validation import Validation, load_both, load_validation


def assemble(recipe: Recipe, online: OnlineTarget | None = None, teach: Any = None) -> tuple[Distiller, DistillData]:
    """Build a new student, and all that it is trained with.

    Args:
        recipe: The run, of one tower.
        online: For `target: online`, else None.
        teach: The online teacher as a function; None for stored targets.

    Raises:
        StoreError: The store is missing, unfinished, of another teacher, or lacks the data's rows.
        ValueError: An option does not fit.
    """
    tower = recipe.one
    corpus = scan_corpus(recipe)
    captions = len(corpus.train.captions)
    tables = open_tables(recipe, corpus.val.alone, captions)
    if recipe.prompts and not captions:
        corpus = with_prompts(corpus, recipe)  # of which a share is held out then
    validation: Validation | HeldOut
    if corpus.val.alone:
        if recipe.target == "photo":
            raise InvalidValue(
                "target photo: expected validation photos with captions, found none to measure recall by"
            )
        corpus, validation, val_rows = hold_out(corpus, tower, tables.train[tower], recipe.holdout)
    else:
        read = tables.val["image"], tables.val.get("text")
        validation, val_rows = load_validation(tower, *read, corpus.val, is_foreign(recipe))
    own = 0  # rows that every epoch has, beside prompts
    if recipe.prompts and captions:
        own = len(corpus.train.captions.column("text").unique())
        corpus = with_prompts(corpus, recipe)
    spec, student = build_student(recipe, tables.teacher(tower), corpus)
    stored = None if online else tables.train["image" if recipe.target == "photo" else tower]
    train: Images | Captions
    val: Images | Captions
    if tower == "image":
        train, val, views = make_images(spec, corpus, stored, val_rows, recipe.seed, online)
    elif recipe.target == "photo":
        train, val, views = make_photo_captions(spec, corpus, tables.train["image"], val_rows)
    else:
        train, val, views = make_captions(spec, corpus, stored, val_rows, online)
    if recipe.loader.packed is not None:
        pack_loader(recipe.loader.packed, train, val, views)
    objective = make_objective(recipe.loss, draw_bank(recipe.loss, tables, tower, recipe.seed))
    pairs = open_pairs(recipe, tables, corpus, train)
    draw = None if pairs is None else pairs.draw
    module = Distiller(spec, student, objective, recipe.optimizer, validation, teach, draw)
    drawn = drawn_each_epoch(len(train), own, recipe.prompts) if recipe.prompts else None
    return module, DistillData(train, val, views, loader_options(recipe.loader), recipe.seed, drawn)


def assemble_both(
    recipe: Recipe, students: Mapping[Tower, tuple[TowerSpec, nn.Module]]
) -> tuple[BothDistiller, PairData]:
    """Join two students that were distilled already, and all that they are trained with.

    Args:
        recipe: The run, of tower both.
        students: Tower → the student, in the teacher's embedding space.

    Raises:
        StoreError: The store is missing, unfinished, of another teacher, or lacks the data's rows.
        ValueError: An option does not fit, or there are no pairs.
    """
    corpus = _with_photos(scan_corpus(recipe))
    tables = open_tables(recipe)
    # a model that `fit` did not train says nothing of its teacher; from now on it is this one
    taught = {
        tower: (replace(spec, teacher=spec.teacher or tables.teacher("image")), module)
        for tower, (spec, module) in students.items()
    }
    (photo_spec, _), (caption_spec, _) = taught["image"], taught["text"]
    validation, photo_rows, caption_rows = load_both(tables.val["image"], tables.val["text"], corpus.val)
    photos, val_photos, views = make_images(photo_spec, corpus, tables.train["image"], photo_rows, recipe.seed)
    captions, val_captions, _ = make_captions(caption_spec, corpus, tables.train["text"], caption_rows)
    if recipe.loader.packed is not None:
        pack_loader(recipe.loader.packed, photos, val_photos, views)
    pairs = couple(photos, captions, corpus.train.require_captions())
    module = BothDistiller(taught, make_both_objective(recipe, tables), recipe.optimizer, validation)
    return module, PairData(pairs, (val_photos, val_captions), views, loader_options(recipe.loader), recipe.seed)


def scan_corpus(recipe: Recipe) -> Corpus:
    """The recipe's data, with its translations in place of the training captions; what was found is said."""
    corpus = scan(recipe.data, recipe.sources)
    say(*corpus.report.lines())
    return with_translations(corpus, recipe.translations, recipe.translations_columns, recipe.translations_originals)


def _with_photos(corpus: Corpus) -> Corpus:
    """Less the training captions without a photo, which would be looked up and tokenised for nothing."""
    captions = corpus.train.require_captions()
    paired = captions.filter(pc.is_valid(captions.column("image_id")))
    if not len(paired):
        return corpus  # `couple` says what is wrong
    return replace(corpus, train=replace(corpus.train, captions=paired))


def loader_options(loader: Loader) -> LoaderOptions:
    return LoaderOptions(loader.batch_size, loader.val_batch_size, loader.workers, loader.resident)


def make_objective(loss: Loss, context: Mapping[str, Tensor] | None = None) -> WeightedSum:
    """The weighted sum; lists that are left out are ones. `context` is what its losses need beside the batch."""
    ones = [1.0] * len(loss.names)
    weights = ones if loss.weights is None else loss.weights
    scales = ones if loss.scales is None else loss.scales
    return WeightedSum(loss.names, weights, scales, loss.options, context)


def make_both_objective(recipe: Recipe, tables: Tables) -> BothSum:
    """Each tower's losses, with the bank of the other tower where they need one, and those between the students.

    Where the recipe names no temperature for the losses in BETWEEN, they get the teacher's.
    """
    loss = recipe.loss
    options = {name: given for name, given in loss.options.items() if name not in loss.between}
    alone = replace(loss, options=options)
    sides = {tower: make_objective(alone, draw_bank(loss, tables, tower, recipe.seed)) for tower in TOWERS}
    temperature: dict[str, Any] = {"temperature": 1 / tables.teacher("image")["logit_scale"]}
    between = {name: (temperature if name in BETWEEN else {}) | loss.options.get(name, {}) for name in loss.between}
    return BothSum(sides["image"], sides["text"], loss.between, between)
