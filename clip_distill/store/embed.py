"""Run a teacher's tower over images or captions, yielding finished shards for `build_table`.

Shapes: B images in a batch, V views, S image side, L tokens of a batch's longest caption, D embedding, N rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from clip_distill.data.images import BadImage, decode, digest_of, read_bytes_of
from clip_distill.data.tokens import TokenizerSpec, tokenize
from clip_distill.data.views import Views, normalise
from clip_distill.store.build import Part
from clip_distill.store.write import Photo, Shard
from clip_distill.towers import TowerSpec

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runner:
    """How to run a teacher.

    Args:
        spec: What the module is.
        module: The tower, in eval mode.
        device: Where it is to run.
        precision: "fp32", "bf16" or "fp16".
        batch_size: Views or captions per forward pass.
        workers: Processes that decode images; 0 decodes in this one.
    """

    spec: TowerSpec
    module: nn.Module
    device: torch.device
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 1

    def __post_init__(self) -> None:
        self.module.to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> NDArray[np.float32]:
        """Normalised pixels [B, 3, S, S] or tokens [B, L], on the device → float32 [B, D]."""
        half = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, half) if half else contextlib.nullcontext():
            embeddings: NDArray[np.float32] = self.module(inputs).float().cpu().numpy()
        return embeddings


class Source(NamedTuple):
    """An image's id, and which photo it is; None where it can't be read."""

    id: str
    photo: Photo | None


class ImageViews(Dataset[tuple[Source, Tensor | str]]):
    """Image by image: what it is, and its views uint8 [V, 3, S, S] or the reason why it can't be read.

    Args:
        images: Table of `data.layout`, one row per image.
        views: Renders the views.
        stop: Number of the last view, and one.
        first: Number of the first view; V is `stop - first`.
    """

    def __init__(self, images: pa.Table, views: Views, stop: int, first: int = 0) -> None:
        self.images, self.views, self.numbers = images, views, range(first, stop)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Source, Tensor | str]:
        row = self.images.slice(index, 1).to_pylist()[0]
        try:
            content = read_bytes_of(row["path"], row["offset"], row["size"])
            image = decode(content)
        except BadImage as error:
            return Source(row["id"], None), str(error)
        source = Source(row["id"], Photo(digest_of(content), len(content)))
        return source, torch.stack([self.views(image, row["id"], view) for view in self.numbers])


def embed_images(
    runner: Runner, images: pa.Table, parts: list[Part], numbers: range, views: Views, title: str
) -> Iterator[tuple[Part, Shard]]:
    """Embed views of each image; one that can't be read is skipped with its reason.

    What a batch holds depends on its shard alone, so neither a restart nor the number of processes changes a bit.

    Args:
        runner: The teacher's image tower.
        images: Table of `data.layout`, one row per image.
        parts: Which rows make which shard.
        numbers: Which V views.
        views: Renders the views.
        title: Of the progress bar.
    """
    if not parts:
        return
    count = len(numbers)
    per_batch = max(1, runner.batch_size // count)
    batches = [
        (part, range(start, min(start + per_batch, part.stop)))
        for part in parts
        for start in range(part.start, part.stop, per_batch)
    ]
    loader = DataLoader(
        ImageViews(images, views, numbers.stop, numbers.start),
        batch_sampler=[rows for _, rows in batches],  # type: ignore[misc]  # a range will do, and is small
        num_workers=runner.workers,
        collate_fn=list,
        pin_memory=runner.device.type == "cuda",
    )
    total = sum(part.stop - part.start for part in parts)
    shard, photos = Shard([], []), list[Photo]()
    blocks: list[NDArray[np.float32]] = []
    with tqdm(total=total, desc=title, unit=" images", smoothing=0) as bar:
        for (part, rows), items in zip(batches, loader, strict=True):
            good = [(source, pixels) for source, pixels in items if isinstance(pixels, Tensor)]
            shard.skipped |= {source.id: reason for source, reason in items if isinstance(reason, str)}
            if good:
                pixels = torch.stack([pixels for _, pixels in good]).to(runner.device, non_blocking=True)  # [B,V,3,S,S]
                embeddings = runner(normalise(pixels.flatten(0, 1), runner.spec.preprocess))
                blocks.append(embeddings.reshape(len(good), count, -1))
                shard.ids += [source.id for source, _ in good]
                photos += [source.photo for source, _ in good if source.photo is not None]
            bar.update(len(items))
            if rows.stop == part.stop:
                stacked = np.concatenate(blocks or [np.empty((0, count, runner.spec.embed_dim), np.float32)])
                shard.views = [stacked[:, view] for view in range(count)]
                shard.photos = photos
                yield part, shard
                shard, photos, blocks = Shard([], []), [], []


def embed_texts(
    runner: Runner, texts: pa.Table, parts: list[Part], numbers: range, title: str
) -> Iterator[tuple[Part, Shard]]:
    """Embed unique captions, in each shard from short to long, cut to the batch's longest where the tower is causal.

    Args:
        runner: The teacher's text tower.
        texts: Table whose first column holds the captions.
        parts: Which rows make which shard.
        numbers: Which views; a caption has the plain one alone.
        title: Of the progress bar.
    """
    if not parts:
        return
    tokenizer = TokenizerSpec(**runner.spec.tokenizer)
    total = sum(part.stop - part.start for part in parts)
    with tqdm(total=total, desc=title, unit=" captions", smoothing=0) as bar:
        for part in parts:
            ids = texts.column(0).slice(part.start, part.stop - part.start).to_pylist()
            tokens = tokenize(tokenizer, ids)
            out = np.empty((len(ids), runner.spec.embed_dim), np.float32)
            by_length = np.argsort(tokens.lengths, kind="stable")
            for start in range(0, len(ids), runner.batch_size):
                rows = by_length[start : start + runner.batch_size]
                width = None if runner.spec.causal else tokenizer.context_length
                out[rows] = runner(tokens.take(rows).pad(tokenizer.pad_id, width).to(runner.device))
                bar.update(len(rows))
            yield part, Shard(ids, [out for _ in numbers], tokens)
