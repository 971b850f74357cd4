"""What towers are measured on: real photos and captions, or made-up ones of the same shape.

Shapes: B batch, N rows, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_distill.benchmarking.job import Array, Case
from clip_distill.corpus.layout import Sources, Split, scan
from clip_distill.pixels.views import Views, normalise
from clip_distill.store.embed import ImageViews
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import progress
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec

WORDS = (
    "a",
    "the",
    "dog",
    "cat",
    "child",
    "woman",
    "red",
    "blue",
    "two",
    "on",
    "in",
    "near",
    "runs",
    "sits",
    "grass",
    "snow",
)


@dataclass(frozen=True)
class Inputs:
    """Evenly spaced photos and captions of a validation split; without one, noise and sentences of random words.

    Args:
        split: The validation split; None makes inputs up.
        rows: N, how many embeddings are compared.
        seed: Of what is made up.
    """

    split: Split | None
    rows: int
    seed: int = 0

    @staticmethod
    def of(data: str | None, sources: Sources, rows: int) -> Inputs:
        """Scan a data folder, if there is one."""
        return Inputs(None if data is None else scan(data, sources).val, rows)

    @property
    def kind(self) -> str:
        """For the report."""
        return "random" if self.split is None else "real"

    def images(self, spec: TowerSpec) -> Tensor:
        """float32 [N, 3, S, S], preprocessed for a tower; photos that can't be read are left out.

        Raises:
            ValueError: There is no photo that can be read.
        """
        if self.split is None:
            shape = (3, *np.broadcast_to(spec.preprocess["size"], 2).tolist())
            generator = torch.Generator().manual_seed(self.seed)
            pixels = torch.randint(0, 256, (self.rows, *shape), dtype=torch.uint8, generator=generator)
            return normalise(pixels, spec.preprocess)
        table = self.split.require_images()
        chosen = table.take(_spread(len(table), self.rows))
        dataset = ImageViews(chosen, Views(spec.preprocess), 1)
        items = (dataset[row][1] for row in progress(range(len(dataset)), desc="photos"))
        views = [views for views in items if isinstance(views, Tensor)]
        if not views:
            raise InvalidValue(f"none of {len(chosen)} validation photos can be read")
        return normalise(torch.cat(views), spec.preprocess)

    def captions(self) -> list[str]:
        """N captions."""
        if self.split is not None:
            texts: list[str] = self.split.require_captions().column("text").unique().to_pylist()
            return [texts[row] for row in _spread(len(texts), self.rows)]
        random = np.random.default_rng(self.seed)
        return [" ".join(random.choice(WORDS, random.integers(4, 17))) for _ in range(self.rows)]

    def compared(self, spec: TowerSpec, batch_size: int) -> list[Array]:
        """A tower's inputs in whole batches, captions at the context length: shapes that are also timed.

        A smaller last batch is left out, since for its shape a compiler would start anew.
        """
        if spec.tower == "image":
            rows = self.images(spec).contiguous().numpy()
        else:
            tokenizer = TokenizerSpec(**spec.tokenizer)
            rows = tokenize(tokenizer, self.captions()).pad(tokenizer.pad_id, tokenizer.context_length).numpy()
        whole = len(rows) // batch_size * batch_size or len(rows)
        return [rows[start : start + batch_size] for start in range(0, whole, batch_size)]

    def timed(self, spec: TowerSpec, batch_sizes: Sequence[int], tokens: int) -> dict[Case, Array]:
        """Inputs of each batch size, repeated where there are too few.

        Args:
            spec: Whose inputs.
            batch_sizes: B of each case.
            tokens: Causal text towers are timed at this length, too, and all text towers at their context length.
        """
        if spec.tower == "image":
            images = self.images(spec).contiguous().numpy()
            return {Case(size, None): np.resize(images, (size, *images.shape[1:])) for size in batch_sizes}
        tokenizer = TokenizerSpec(**spec.tokenizer)
        ragged = tokenize(tokenizer, self.captions())
        context = tokenizer.context_length
        lengths = [context, *([tokens] if spec.causal and tokens < context else [])]
        dense = {length: ragged.truncate(length).pad(tokenizer.pad_id, length).numpy() for length in lengths}
        return {
            Case(size, length): np.resize(dense[length], (size, length)) for length in lengths for size in batch_sizes
        }


def _spread(count: int, rows: int) -> list[int]:
    """Up to `rows` evenly spaced of `count` row numbers."""
    return np.linspace(0, count - 1, min(count, rows)).round().astype(int).tolist()
