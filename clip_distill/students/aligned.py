"""A teacher's text tower with another tokenizer: its token table in the words of another language.

A token of the new tokenizer gets the mean of the rows of the teacher's tokens that it translates, weighted by how
probably it does: the word translation table of IBM Model 1 (Brown et al., 1993), estimated on the parallel captions
that the student trains on. WECHSEL (Minixhofer et al., 2022) does so by bilingual word embeddings, which none of this
needs. Two tokenizers of one language are aligned alike.

Shapes: N pairs, P links (a token of a caption with one of its translation), T different links, V tokens of the new
tokenizer, W the tower's width.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clip_distill.system.talk import progress
from clip_distill.tokens.ragged import Ragged
from clip_distill.towers.spec import TowerSpec

ITERATIONS = 5
MOST_PAIRS = 100_000  # some 10 million links


def translate_table(
    spec: TowerSpec, teacher: nn.Module, tokenizer: dict[str, Any], originals: Ragged, translations: Ragged
) -> tuple[TowerSpec, nn.Module]:
    """A copy of the teacher's tower that reads another tokenizer's tokens.

    Args:
        spec: What the teacher's tower is.
        teacher: One of open_clip's text transformers.
        tokenizer: The other tokenizer's `TokenizerSpec.as_dict()`.
        originals: The teacher's tokens of N captions, ends included.
        translations: The other tokenizer's of their translations, ends included.

    Returns:
        What it is, and the tower. Tokens that stand in no translation have the mean of the teacher's table.
    """
    step = -(-len(originals) // MOST_PAIRS)
    chosen = np.arange(0, len(originals), step)
    theirs, own = originals.take(chosen), translations.take(chosen)
    table = teacher.get_parameter("token_embedding.weight").detach().float()
    rows = table.mean(0).repeat(tokenizer["vocab_size"], 1)  # [V, W]
    one, other, probability = translation_table(own, theirs)
    tokens, place = np.unique(one, return_inverse=True)
    weight = np.bincount(place, probability)
    weights = torch.from_numpy(probability / weight[place]).float()
    sums = torch.zeros(len(tokens), table.shape[1])
    sums.index_add_(0, torch.from_numpy(place), table[torch.from_numpy(other)] * weights[:, None])
    rows[torch.from_numpy(tokens)] = sums
    for ends in (0, -1):  # start and end of text
        mine, from_row = (int(each.flat[: each.offsets[1]][ends]) for each in (own, theirs))
        rows[mine] = table[from_row]
    new: Any = copy.deepcopy(teacher)
    new.token_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
    return dataclasses.replace(spec, tokenizer=tokenizer), new


def translation_table(own: Ragged, theirs: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """IBM Model 1: how probably a token is translated by another, from N pairs of captions, ends left out.

    Returns:
        [T] a token, [T] one of the other language that it stands with, [T] p(other | token).
    """
    left, right, pair = _links(own, theirs)
    width = int(max(own.flat.max(initial=0), theirs.flat.max(initial=0))) + 2
    # token 0 of the left side is "nothing", which explains what is in every caption
    kinds, kind = np.unique(left * width + right, return_inverse=True)
    source, target = kinds // width, kinds % width
    words, word = np.unique(pair * width + right, return_inverse=True)  # a word of a caption, which something explains
    table = np.ones(len(kinds))
    for _ in range(ITERATIONS):
        share = table[kind]
        share /= np.bincount(word, share, len(words))[word]
        counts = np.bincount(kind, share, len(kinds))
        table = counts / np.bincount(source, counts)[source]
    real = source > 0
    return source[real] - 1, target[real], table[real]


def _links(own: Ragged, theirs: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """[P] each: a token + 1 (0 for nothing) of a caption, one of its translation, and the number of the pair."""
    lefts, rights, pairs = [], [], []
    for row in progress(range(len(own)), "align tokens", unit=" pairs"):
        mine, other = (each.flat[each.offsets[row] + 1 : each.offsets[row + 1] - 1] for each in (own, theirs))
        left = np.concatenate([[0], np.unique(mine).astype(np.int64) + 1])
        right = np.unique(other).astype(np.int64)
        lefts.append(np.repeat(left, len(right)))
        rights.append(np.tile(right, len(left)))
        pairs.append(np.full(len(left) * len(right), row))
    return np.concatenate(lefts), np.concatenate(rights), np.concatenate(pairs)
