"""Run a teacher's tower over images or captions, yielding finished shards for `build_table`.

Shapes: B images in a batch, V views, S image side, L tokens of a batch's longest caption, D embedding, N rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from clip_distill.pixels import photos as encoded
from clip_distill.pixels.photos import BadImage, digest_of, read_bytes_of
from clip_distill.pixels.views import Views, normalise, stack
from clip_distill.store.build import Part
from clip_distill.store.write import Photo, Shard
from clip_distill.system.allocator import give_back
from clip_distill.system.feed import Feed, named_failures
from clip_distill.system.talk import progress
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec

T = TypeVar("T")
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

    def __call__(self, inputs: Tensor) -> NDArray[np.float32]:
        """Normalised pixels [B, 3, S, S] or tokens [B, L], on the device → float32 [B, D]."""
        return self.start(inputs)()

    @torch.inference_mode()
    def start(self, inputs: Tensor) -> Callable[[], NDArray[np.float32]]:
        """As a call, but on CUDA it returns at once: a function that waits for the result."""
        half = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, half) if half else contextlib.nullcontext():
            embeddings: Tensor = self.module(inputs).float().to("cpu", non_blocking=self.device.type == "cuda")
        done = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

        def finish() -> NDArray[np.float32]:
            if done is not None:
                done.synchronize()
            result: NDArray[np.float32] = embeddings.numpy()
            return result

        return finish

    def blank(self, size: int) -> Tensor:
        """A batch of nothing, as large as photos or the longest captions make it: pixels [B, 3, S, S] or tokens."""
        if self.spec.tower == "text":
            return torch.zeros(size, self.spec.tokenizer["context_length"], dtype=torch.int64, device=self.device)
        side = self.spec.preprocess["size"]
        shape = (side, side) if isinstance(side, int) else tuple(side)
        pixels = torch.zeros(size, 3, *shape, dtype=torch.uint8, device=self.device)
        return normalise(pixels, self.spec.preprocess)


class Source(NamedTuple):
    """An image's id, and which photo it is; None where it can't be read."""

    id: str
    photo: Photo | None


class ImageViews(Dataset[tuple[Source, Tensor | str]]):
    """Image by image: what it is, and its views uint8 [V, 3, S, S] or the reason why it can't be read.

    Args:
        images: Table of `corpus.layout`, one row per image.
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
            photo = encoded.Photo(content)
            pixels = stack([self.views(photo, row["id"], view) for view in self.numbers])
        except BadImage as error:
            return Source(row["id"], None), str(error)
        return Source(row["id"], Photo(digest_of(content), len(content))), pixels


class Rendered(NamedTuple):
    """A batch of `ImageViews`, as it comes out of a worker: one block of pixels, since each tensor costs a file there.

    Args:
        sources: What was read, G images.
        skipped: Id → reason, of those that can't be.
        pixels: uint8 [G · V, 3, S, S]; None where G is 0.
    """

    sources: list[Source]
    skipped: dict[str, str]
    pixels: Tensor | None


def join(items: list[tuple[Source, Tensor | str]]) -> Rendered:
    """Items of `ImageViews` as a batch."""
    good = [(source, pixels) for source, pixels in items if isinstance(pixels, Tensor)]
    skipped = {source.id: reason for source, reason in items if isinstance(reason, str)}
    pixels = stack([view for _, views in good for view in views]) if good else None
    return Rendered([source for source, _ in good], skipped, pixels)


def embed_images(
    runner: Runner, images: pa.Table, parts: list[Part], numbers: range, views: Views, title: str
) -> Iterator[tuple[Part, Shard]]:
    """Embed views of each image; one that can't be read is skipped with its reason.

    What a batch holds depends on its shard alone, so neither a restart nor the number of processes changes a bit.

    Args:
        runner: The teacher's image tower.
        images: Table of `corpus.layout`, one row per image.
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
    give_back()
    loader: Feed[Rendered] = Feed(
        ImageViews(images, views, numbers.stop, numbers.start),
        batch_sampler=[rows for _, rows in batches],
        num_workers=runner.workers,
        collate_fn=join,
        pin_memory=runner.device.type == "cuda",
    )
    total = sum(part.stop - part.start for part in parts)
    shard, photos, blocks = Shard([], []), list[Photo](), list[NDArray[np.float32]]()
    with named_failures(), progress(total=total, desc=title, unit=" images", smoothing=0) as bar:
        for (part, rows), (batch, embeddings) in zip(batches, _embed(runner, loader), strict=True):
            shard.ids += [source.id for source in batch.sources]
            photos += [source.photo for source in batch.sources if source.photo is not None]
            shard.skipped |= batch.skipped
            blocks.append(embeddings.reshape(len(batch.sources), count, -1))
            bar.update(len(rows))
            if rows.stop == part.stop:
                stacked = np.concatenate(blocks)
                shard.views = [stacked[:, view] for view in range(count)]
                shard.photos = photos
                yield part, shard
                shard, photos, blocks = Shard([], []), [], []


def _embed(runner: Runner, batches: Iterable[Rendered]) -> Iterator[tuple[Rendered, NDArray[np.float32]]]:
    """Each batch with its embeddings [G · V, D]; the next batch is with the device while one is handed out."""

    def start(batch: Rendered) -> Callable[[], tuple[Rendered, NDArray[np.float32]]]:
        if batch.pixels is None:
            return lambda: (batch, np.empty((0, runner.spec.embed_dim), np.float32))
        pixels = batch.pixels.to(runner.device, non_blocking=True)
        finish = runner.start(normalise(pixels, runner.spec.preprocess))
        return lambda: (batch, finish())

    return ahead(map(start, batches))


def ahead(started: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each of them brings; the next is started before one is waited for."""
    waiting: list[Callable[[], T]] = []
    for finish in started:
        waiting.append(finish)
        if len(waiting) > 1:
            yield waiting.pop(0)()
    for finish in waiting:
        yield finish()


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
    with progress(total=total, desc=title, unit=" captions", smoothing=0) as bar:
        for part in parts:
            ids = texts.column(0).slice(part.start, part.stop - part.start).to_pylist()
            tokens = tokenize(tokenizer, ids)
            out = np.empty((len(ids), runner.spec.embed_dim), np.float32)
            by_length = np.argsort(tokens.lengths, kind="stable")
            width = None if runner.spec.causal else tokenizer.context_length
            chosen = [by_length[start : start + runner.batch_size] for start in range(0, len(ids), runner.batch_size)]
            batches = (tokens.take(rows).pad(tokenizer.pad_id, width).to(runner.device) for rows in chosen)
            for rows, embeddings in zip(chosen, ahead(map(runner.start, batches)), strict=True):
                out[rows] = embeddings
                bar.update(len(rows))
            yield part, Shard(ids, [out for _ in numbers], tokens)
