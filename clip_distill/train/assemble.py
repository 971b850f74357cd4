"""From a recipe to its parts: student, datasets, validation, objective, joined into a Distiller and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clip_distill.batches.datasets import Captions, DistillData, Images, LoaderOptions
from clip_distill.batches.packed import pack_images
from clip_distill.corpus.layout import Corpus, scan
from clip_distill.corpus.report import say
from clip_distill.corpus.translations import with_targets, with_translations
from clip_distill.losses import WeightedSum
from clip_distill.pixels.views import Views
from clip_distill.recipe import Loss, Recipe
from clip_distill.store.ensemble import open_table
from clip_distill.store.table import Store, StoreError
from clip_distill.students import make_student
from clip_distill.students.aligned import translate_table
from clip_distill.tokens import trained as new_tokenizer
from clip_distill.tokens.encode import Ragged, TokenizerSpec, tokenize
from clip_distill.tokens.pruned import kept_ids, prune
from clip_distill.towers.spec import TowerSpec
from clip_distill.train.bank import load_context, load_pairs, require_teacher
from clip_distill.train.distill import Distiller
from clip_distill.train.validation import load_validation, say_missing


@dataclass(frozen=True)
class OnlineTarget:
    """The teacher of `target: online`, as far as data goes; `Distiller` runs it.

    Args:
        spec: The teacher's tower.
        augment: Augmentation of the online views.
    """

    spec: TowerSpec
    augment: str


def assemble(recipe: Recipe, online: OnlineTarget | None = None, teach: Any = None) -> tuple[Distiller, DistillData]:
    """Build everything that `Trainer.fit` takes.

    Args:
        recipe: The run.
        online: For `target: online`, else None.
        teach: The online teacher as a function; None for stored targets.

    Raises:
        StoreError: The store is missing, unfinished, of another teacher, or lacks the data's rows.
        ValueError: An option does not fit.
    """
    corpus = scan_corpus(recipe)
    val_images, val_texts = (open_table(recipe.store, tower, "val") for tower in ("image", "text"))
    own = val_images if recipe.tower == "image" else val_texts
    teacher = own.manifest.teacher
    spec, student = build_student(recipe, teacher, corpus)
    foreign = recipe.translations is not None
    validation, val_rows = load_validation(recipe.one, val_images, val_texts, corpus.val, foreign)
    train_store = None if online else open_table(recipe.store, recipe.tower, "train")
    if train_store is not None:
        require_teacher(train_store, own)
    make = make_images if recipe.tower == "image" else make_captions
    train, val, views = make(spec, corpus, train_store, val_rows, recipe, online)
    loader = recipe.loader
    if loader.packed is not None:
        pack_loader(loader.packed, train, val, views)
    options = LoaderOptions(loader.batch_size, loader.val_batch_size, loader.workers)
    objective = make_objective(recipe.loss, load_context(recipe, own))
    pairs = load_pairs(recipe, own, corpus, train)
    draw = None if pairs is None else pairs.draw
    module = Distiller(spec, student, objective, recipe.optimizer, validation, teach, draw)
    return module, DistillData(train, val, views, options, recipe.seed)


def scan_corpus(recipe: Recipe) -> Corpus:
    """The recipe's data, with its translations in place of the training captions; what was found is said."""
    corpus = scan(recipe.data, recipe.sources)
    say(*corpus.report.lines())
    return with_translations(corpus, recipe.translations, recipe.translations_columns, recipe.translations_originals)


def build_student(recipe: Recipe, teacher: Mapping[str, Any], corpus: Corpus) -> tuple[TowerSpec, nn.Module]:
    """The recipe's student, its vocabulary or tokenizer that of the training captions where the recipe says so."""
    chosen = recipe.student
    options = dict(chosen.options)
    if chosen.vocabulary == "corpus":
        if recipe.tower != "text":
            raise ValueError("student.vocabulary corpus: expected --tower text, found image, which reads no captions")
        theirs = TokenizerSpec(**teacher["tokenizer"])
        captions = corpus.train.require_captions().column("text").unique().to_pylist()
        pruned = prune(theirs, tokenize(theirs, captions), chosen.min_count, chosen.common)
        options["tokenizer"] = pruned.as_dict()
    if chosen.tokenizer is not None:
        options["tokenizer"] = _own_tokenizer(recipe, corpus).as_dict()
    return make_student(recipe.one, chosen.name, teacher, options)


def _own_tokenizer(recipe: Recipe, corpus: Corpus) -> TokenizerSpec:
    """The tokenizer that the recipe names or has trained; that of its last checkpoint where it goes on from one."""
    chosen, last = recipe.student, Path(recipe.out) / "checkpoints" / "last.ckpt"
    assert chosen.tokenizer is not None
    if recipe.resume and last.is_file():
        checkpoint = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        return TokenizerSpec(**checkpoint["spec"]["tokenizer"])
    length = {name: chosen.options[name] for name in ("context_length",) if name in chosen.options}
    if chosen.tokenizer != "train":
        return new_tokenizer.read(chosen.tokenizer, **length)
    texts = corpus.train.require_captions().column("text").unique().to_pylist()
    size = chosen.options.get("vocab_size", new_tokenizer.DEFAULT_SIZE)
    return new_tokenizer.train(texts, size, **length)


def in_own_tokens(
    spec: TowerSpec, data: DistillData, source: tuple[TowerSpec, nn.Module]
) -> tuple[TowerSpec, nn.Module]:
    """The teacher's tower to start a student from; where their tokenizers differ, with rows for the student's tokens.

    Args:
        spec: What the student is.
        data: What it trains on.
        source: What the teacher's tower is, and the tower.
    """
    train, (theirs, teacher) = data.train, source
    same = same_tokenizer(spec.tokenizer, theirs.tokenizer) or kept_ids(spec.tokenizer) is not None
    if same or not isinstance(teacher, TextTransformer) or not isinstance(train, Captions):
        return source
    if train.store is None or train.store_rows is None:
        return source  # the teacher runs online, and its tokens are not aligned
    return translate_table(*source, spec.tokenizer, train.store.tokens.take(train.store_rows), train.tokens)


def make_objective(loss: Loss, context: Mapping[str, Tensor] | None = None) -> WeightedSum:
    """The weighted sum; lists that are left out are ones. `context` is what its losses need beside the batch."""
    ones = [1.0] * len(loss.names)
    weights = ones if loss.weights is None else loss.weights
    scales = ones if loss.scales is None else loss.scales
    return WeightedSum(loss.names, weights, scales, loss.options, context)


def make_images(
    spec: TowerSpec,
    corpus: Corpus,
    store: Store | None,
    val_rows: pa.Table,
    recipe: Recipe,
    online: OnlineTarget | None,
) -> tuple[Images, Images, int]:
    """Photos to train on, those of `val_rows` to validate, and how many stored views there are; 0 for online ones."""
    photos = corpus.train.require_images()
    plain = Views(spec.preprocess)
    val = Images(val_rows, plain)  # without a store: validation has its targets already
    val.digests = val_rows.column("digest").combine_chunks()
    if online is not None:
        views = Views(spec.preprocess, online.augment, recipe.seed)
        same = spec.preprocess == online.spec.preprocess
        theirs = None if same else Views(online.spec.preprocess, online.augment, recipe.seed)
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
        raise ValueError(f"loader.packed: expected photos with stored targets, found {found}. Leave it out")
    train.packed = pack_images(Path(folder) / "train", train, views)
    val.packed = pack_images(Path(folder) / "val", val, 1)


def make_captions(
    spec: TowerSpec,
    corpus: Corpus,
    store: Store | None,
    val_rows: pa.Table,
    recipe: Recipe,
    online: OnlineTarget | None,
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


def student_tokens(tokenizer: TokenizerSpec, store: Store, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Ragged:
    """The student's tokens of the given captions: the store's own where the tokenizer is the teacher's."""
    theirs = store.manifest.teacher["tokenizer"]
    if same_tokenizer(tokenizer.as_dict(), theirs) and tokenizer.context_length <= theirs["context_length"]:
        return store.tokens.take(rows).truncate(tokenizer.context_length)
    return tokenize(tokenizer, store.ids.take(pa.array(rows)).to_pylist())


def same_tokenizer(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two tokenizers give equal tokens, up to where they truncate."""
    return {**one, "context_length": 0} == {**other, "context_length": 0}


def _known(store: Store, ids: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
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
