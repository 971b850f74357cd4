"""Encode photos and captions with a tower, and measure every pairing of image towers with text towers.

Shapes: N_i images, N_t captions, N rows, B batch, L tokens of the batch's longest caption, S image side, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from clip_distill.evaluation.recall import RECALLS, retrieval_metrics
from clip_distill.pixels.views import Views, normalise
from clip_distill.store.embed import ImageViews, Rendered, join
from clip_distill.system.errors import InvalidValue
from clip_distill.system.feed import Feed, named_failures
from clip_distill.system.talk import progress
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec


def encode_images(
    spec: TowerSpec,
    module: nn.Module,
    images: pa.Table,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 1,
    skipped: Counter[str] | None = None,
) -> tuple[Tensor, list[str]]:
    """Embed the plain view of every image that can be read.

    Args:
        spec: Its `preprocess` says size, mean and std.
        module: The image tower, on `device`, in eval mode.
        images: Table of `corpus.layout`: id, path, offset, size.
        device: Where the module is.
        batch_size: Images per forward pass.
        workers: Processes that decode; 0 decodes in this one.
        skipped: Counts the images that can't be read, by reason.

    Returns:
        Embeddings, float32 [N, D] on the CPU, not normalised; and the N ids that they belong to, in the table's order.
    """
    loader: Feed[Rendered] = Feed(
        ImageViews(images, Views(spec.preprocess), 1),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=join,
        pin_memory=device.type == "cuda",
    )
    blocks = [torch.empty(0, spec.embed_dim)]
    ids: list[str] = []
    with named_failures(), progress(total=len(images), desc="images", unit=" images", smoothing=0) as bar:
        for batch in loader:
            if skipped is not None:
                skipped.update(batch.skipped.values())
            if batch.pixels is not None:
                pixels = batch.pixels.to(device, non_blocking=True)  # [B, 3, S, S]
                blocks.append(_forward(module, normalise(pixels, spec.preprocess)))
                ids += [source.id for source in batch.sources]
            bar.update(len(batch.sources) + len(batch.skipped))
    return torch.cat(blocks), ids


def encode_texts(
    spec: TowerSpec, module: nn.Module, texts: list[str], device: torch.device, batch_size: int = 64
) -> Tensor:
    """Embed captions, each different one once, short ones first, cut to the batch's longest where the tower allows it.

    Args:
        spec: Its `tokenizer` makes the tokens.
        module: The text tower, on `device`, in eval mode.
        texts: N captions; repeats are allowed.
        device: Where the module is.
        batch_size: Captions per forward pass.

    Returns:
        float32 [N, D] on the CPU, in the order of `texts`, not normalised.
    """
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    tokenizer = TokenizerSpec(**spec.tokenizer)
    tokens = tokenize(tokenizer, list(row_of))
    width = None if spec.causal else tokenizer.context_length
    embeddings = torch.empty(len(row_of), spec.embed_dim)
    by_length = np.argsort(tokens.lengths, kind="stable")
    with progress(total=len(row_of), desc="captions", unit=" captions", smoothing=0) as bar:
        for start in range(0, len(row_of), batch_size):
            rows = by_length[start : start + batch_size]
            batch = tokens.take(rows).pad(tokenizer.pad_id, width).to(device)  # [B, L]
            embeddings[torch.from_numpy(rows)] = _forward(module, batch)
            bar.update(len(rows))
    return embeddings[[row_of[text] for text in texts]]


@torch.inference_mode()
def _forward(module: nn.Module, inputs: Tensor) -> Tensor:
    embeddings: Tensor = module(inputs).float().cpu()
    return embeddings


@dataclass(frozen=True)
class Benchmark:
    """The photos and captions of a split that count.

    Args:
        images: Table of `corpus.layout`, N_i rows; photos without a caption are candidates.
        captions: [N_t], each with its photo; all captions of a photo count.
        image_of_caption: int64 [N_t], the row of each caption's photo.
        dropped: Captions left out since their photo is, or since they have none.
    """

    images: pa.Table
    captions: list[str]
    image_of_caption: Tensor
    dropped: int

    @staticmethod
    def of(images: pa.Table, captions: pa.Table) -> Benchmark:
        """Pair the captions (text, image_id) with the rows of `images`.

        Raises:
            ValueError: No caption has its photo among the images.
        """
        owners = pc.index_in(captions.column("image_id"), value_set=images.column("id").combine_chunks())
        paired = pc.is_valid(owners)
        chosen = captions.filter(paired)
        if len(chosen) == 0:
            raise InvalidValue(f"none of {len(captions)} captions belongs to one of {len(images)} photos")
        rows = np.asarray(owners.filter(paired)).astype(np.int64)
        texts: list[str] = chosen.column("text").to_pylist()
        return Benchmark(images, texts, torch.from_numpy(rows), len(captions) - len(chosen))


def take_ids(embeddings: Tensor, ids: list[str], wanted: list[str]) -> Tensor:
    """[len(wanted), D]: the rows of `wanted`, each of which must be among `ids` [N]."""
    row_of = {id: row for row, id in enumerate(ids)}
    return embeddings[[row_of[id] for id in wanted]]


def measure_pairings(
    images: Mapping[str, Tensor], texts: Mapping[str, Tensor], image_of_caption: Tensor
) -> list[dict[str, Any]]:
    """Retrieval of every image tower with every text tower.

    Args:
        images: Tower's name → [N_i, D].
        texts: Tower's name → [N_t, D]; without "teacher" for captions that it was never shown.
        image_of_caption: [N_t].

    Returns:
        A record a pairing, teacher × teacher first: `image` and `text` (the names), the metrics of
        `retrieval_metrics`, and `kept`: each recall in per cent of teacher × teacher's, None where that is 0 or was
        not measured.
    """
    pairs = sorted(((i, t) for i in images for t in texts), key=lambda pair: pair != ("teacher", "teacher"))
    records: list[dict[str, Any]] = []
    whole: dict[str, float] = {}
    for image, text in pairs:
        metrics = retrieval_metrics(images[image], texts[text], image_of_caption)
        if (image, text) == ("teacher", "teacher"):
            whole = metrics
        kept = {
            name: 100 * (metrics[name] / whole[name]) if whole.get(name) else None for name in (*RECALLS, "mean_recall")
        }
        records.append({"image": image, "text": text, **metrics, "kept": kept})
    return records
