"""The student's tower: new, with the vocabulary or tokenizer that the recipe says, and its first weights' source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import nn

from clip_distill.batches.datasets import Captions
from clip_distill.corpus.layout import Corpus
from clip_distill.recipe import Recipe
from clip_distill.students import make_student
from clip_distill.students.aligned import translate_table
from clip_distill.system.errors import InvalidValue
from clip_distill.tokens import trained
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.pruned import kept_ids, prune
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec, load_tower


def build_student(recipe: Recipe, teacher: Mapping[str, Any], corpus: Corpus) -> tuple[TowerSpec, nn.Module]:
    """The recipe's student, its vocabulary or tokenizer that of the training captions where the recipe says so; or the
    one that it goes on with.

    Raises:
        InvalidValue: An option does not fit.
    """
    chosen = recipe.student
    if recipe.start_from is not None:
        spec, student = load_tower(recipe.start_from)
        return spec, student.train()
    options = dict(chosen.options)
    if chosen.vocabulary == "corpus":
        if recipe.tower != "text":
            raise InvalidValue("student.vocabulary corpus: expected --tower text, found image, which reads no captions")
        theirs = TokenizerSpec(**teacher["tokenizer"])
        captions = corpus.train.require_captions().column("text").unique().to_pylist()
        pruned = prune(theirs, tokenize(theirs, captions), chosen.min_count, chosen.common)
        options["tokenizer"] = pruned.as_dict()
    if chosen.tokenizer is not None:
        options["tokenizer"] = _own_tokenizer(recipe, corpus).as_dict()
    return make_student(recipe.one, chosen.name, teacher, options)


def _own_tokenizer(recipe: Recipe, corpus: Corpus) -> TokenizerSpec:
    """The tokenizer that the recipe names or has trained; that of its last checkpoint where it goes on from one."""
    chosen = recipe.student
    last = Path(recipe.out) / "checkpoints" / ("best.ckpt" if recipe.resume == "best" else "last.ckpt")
    assert chosen.tokenizer is not None
    if recipe.resume and last.is_file():
        checkpoint = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        return TokenizerSpec(**checkpoint["spec"]["tokenizer"])
    length = {name: chosen.options[name] for name in ("context_length",) if name in chosen.options}
    if chosen.tokenizer != "train":
        return trained.read(chosen.tokenizer, **length)
    texts = corpus.train.require_captions().column("text").unique().to_pylist()
    size = chosen.options.get("vocab_size", trained.DEFAULT_SIZE)
    return trained.train(texts, size, **length)


def in_own_tokens(spec: TowerSpec, train: Any, source: tuple[TowerSpec, nn.Module]) -> tuple[TowerSpec, nn.Module]:
    """The teacher's tower to start a student from; where their tokenizers differ, with rows for the student's tokens.

    Args:
        spec: What the student is.
        train: The data set that it trains on.
        source: What the teacher's tower is, and the tower.
    """
    theirs, teacher = source
    same = same_tokenizer(spec.tokenizer, theirs.tokenizer) or kept_ids(spec.tokenizer) is not None
    if same or not isinstance(teacher, TextTransformer) or not isinstance(train, Captions):
        return source
    if train.store is None or train.store_rows is None or train.store.manifest.tower != "text":
        return source  # without translations in the store, tokens can't be aligned
    return translate_table(*source, spec.tokenizer, train.store.tokens.take(train.store_rows), train.tokens)


def same_tokenizer(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two tokenizers give equal tokens, up to where they truncate."""
    return {**one, "context_length": 0} == {**other, "context_length": 0}
