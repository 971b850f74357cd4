"""Measure what `embed` does, by the code that `embed` runs: decoding, tokenising, the teacher's towers, and the whole.

Shapes: N rows, B views or captions in a batch, V views, S image side, C context length.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_distill.corpus.layout import Corpus, Sources, scan
from clip_distill.corpus.parts import Split, items_of, parts_there
from clip_distill.pixels.views import Views, normalise
from clip_distill.planning.estimate import Rate, sample_rows
from clip_distill.planning.memory import largest_that_fits
from clip_distill.planning.timing import timed, timed_steps
from clip_distill.store.build import Part
from clip_distill.store.embed import ImageViews, Runner, embed_images, embed_texts
from clip_distill.store.manifest import Manifest
from clip_distill.store.table import PHOTOS
from clip_distill.system.errors import InvalidValue
from clip_distill.system.processes import PeakMemory
from clip_distill.system.talk import say
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TOWERS, Tower, pick_device

MOST_BATCHES = 256  # of photos that are measured, however fast
MOST_TEXTS = 8192
MOST_TOKENISED = 65_536


@dataclass(frozen=True)
class EmbedJob:
    """What `embed` is to do; see its options.

    Args:
        towers: Whose training tables are wanted; validation takes both towers' in any case.
        seconds: How long each stage is measured.
    """

    data: str | None
    sources: Sources
    teacher: str
    towers: tuple[Tower, ...]
    views: int
    augment: str
    seed: int
    batch_size: int
    workers: int
    device: str
    precision: str
    dtype: str
    shard_rows: int
    seconds: float


@dataclass
class EmbedMeasures:
    """What was measured; times in seconds, sizes in bytes.

    Args:
        items: Table → photos or unique captions that were found: not measured, but counted.
        manifests: Table → what it is to be made by.
        stages: Stage → its speed on its own.
        embedding: Table → speed of the whole, from file to embedding.
        readable: Share of the sample's photos that could be read.
        skipped: Reason → photos of the sample that could not.
        good_rows: Rows of training photos that could be read.
        id_bytes: Table → per row of `rows.parquet`.
        tokens_per_caption: Mean.
        token_bytes: Of one token.
        startup: From the process's start, without the measuring: imports, the scan, the teacher's two towers.
        peak: Of the process and its workers.
        device_peak: Of CUDA's memory; None elsewhere.
        largest: Tower → largest batch that fits.
    """

    items: dict[str, int] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    stages: dict[str, Rate] = field(default_factory=dict)
    embedding: dict[str, Rate] = field(default_factory=dict)
    readable: float = 1.0
    skipped: dict[str, int] = field(default_factory=dict)
    good_rows: list[int] = field(default_factory=list)
    id_bytes: dict[str, float] = field(default_factory=dict)
    tokens_per_caption: float = 0.0
    token_bytes: int = 2
    startup: float = 0.0
    peak: int = 0
    device_peak: int | None = None
    largest: dict[str, int] = field(default_factory=dict)


def measure_embed(job: EmbedJob) -> EmbedMeasures:
    """Scan the data, load the teacher, and measure; meant for a process of its own.

    First what `embed` does, in its order, with one tower in memory at a time: so its peak is this process's peak until
    then. Then each stage on its own.
    """
    found = EmbedMeasures()
    with PeakMemory() as memory:
        corpus = scan(job.data, job.sources)
        say(*corpus.report.lines())
        parts = parts_there(corpus, [(tower, "train") for tower in job.towers] + [(tower, "val") for tower in TOWERS])
        towers = [tower for tower in TOWERS if any(tower == each for each, _ in parts)]
        measuring = 0.0
        for tower in towers:
            runner = _load(job, tower)
            began = time.perf_counter()
            for split in (split for each, split in parts if each == tower):
                _describe(found, job, tower, split, runner.spec.teacher, corpus)
            (_measure_images if tower == "image" else _measure_texts)(found, job, runner, corpus)
            measuring += time.perf_counter() - began
            del runner  # before the next tower is loaded
        found.startup = time.time() - psutil.Process().create_time() - measuring
    found.peak = memory.peak
    device = pick_device(job.device)
    found.device_peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    for tower in towers:
        runner = _load(job, tower)
        if tower == "image":
            _measure_stages(found, job, runner, corpus)
        most = max(count for table, count in found.items.items() if table.startswith(tower))
        found.largest[tower] = largest_embed_batch(runner, most * (job.views if tower == "image" else 1))
        del runner
    return found


def _load(job: EmbedJob, tower: Tower) -> Runner:
    spec, module = load_teacher(job.teacher, tower)
    return Runner(spec, module, pick_device(job.device), job.precision, job.batch_size, job.workers)


def _describe(
    found: EmbedMeasures, job: EmbedJob, tower: Tower, split: Split, teacher: dict[str, Any], corpus: Corpus
) -> None:
    """Count the rows of a table, and write down what it is to be made by."""
    table, ids = f"{tower}-{split}", items_of(corpus, tower, split).column("id")
    augmented = split == "train" and tower == "image" and job.views > 1
    views, augment, seed = (job.views, job.augment, job.seed) if augmented else (1, "none", 0)
    found.items[table] = len(ids)
    found.manifests[table] = Manifest(tower, split, teacher, views, augment, seed, job.dtype, job.precision)
    found.id_bytes[table] = parquet_bytes(ids.slice(0, job.shard_rows), tower) / min(len(ids), job.shard_rows)


def parquet_bytes(ids: pa.Array | pa.ChunkedArray, tower: Tower) -> int:
    """What a shard's `rows.parquet` takes, compressed; digests and sizes are as good as random."""
    buffer = io.BytesIO()
    columns = {"id": ids}
    if tower == "image":
        columns |= {
            name: pa.array(np.random.default_rng(0).integers(2**32, size=len(ids)), kind)
            for name, kind in zip(PHOTOS.names, PHOTOS.types, strict=True)
        }
    pq.write_table(pa.table(columns), buffer)
    return buffer.getbuffer().nbytes


def _measure_images(found: EmbedMeasures, job: EmbedJob, runner: Runner, corpus: Corpus) -> None:
    for split in ("train", "val"):
        table = f"image-{split}"
        if table not in found.manifests:
            continue
        made_by = found.manifests[table]
        images = (corpus.train if split == "train" else corpus.val).require_images()
        views = Views(runner.spec.preprocess, made_by.augment, made_by.seed)
        say(f"measuring the embedding of {table}, from file to embedding")
        rows, rate, reasons = embed_some_images(runner, images, views, made_by.views, job.seconds)
        if not rows:
            raise InvalidValue(f"expected photos that can be read, found none among {len(reasons)}: {reasons[0]}")
        found.embedding[table] = rate
        if split == "train" or not found.good_rows:
            found.good_rows = sorted(rows)
            found.readable = len(rows) / (len(rows) + len(reasons))
            found.skipped = {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _measure_stages(found: EmbedMeasures, job: EmbedJob, runner: Runner, corpus: Corpus) -> None:
    """Time decoding and the tower on their own, on photos of the largest table that is wanted."""
    split = "train" if "image-train" in found.manifests else "val"
    made_by = found.manifests[f"image-{split}"]
    images = (corpus.train if split == "train" else corpus.val).require_images()
    views = Views(runner.spec.preprocess, made_by.augment, made_by.seed)
    say("measuring photos: decoding, then the teacher's image tower")
    pixels = _measure_decoding(found, job, images, views, made_by.views)
    found.stages["teacher, image tower"] = _tower_rate(runner, pixels, job.seconds)


def _measure_decoding(found: EmbedMeasures, job: EmbedJob, images: pa.Table, views: Views, count: int) -> Tensor:
    """Time one process that renders V views a photo; return what it rendered, [B, 3, S, S]."""
    dataset = ImageViews(images.take(found.good_rows), views, count)
    rendered: list[Tensor] = []
    began, done = time.perf_counter(), 0
    for row in sample_rows(len(dataset), MOST_BATCHES * job.batch_size, seed=1):
        _, pixels = dataset[int(row)]
        done += 1
        if isinstance(pixels, Tensor) and len(rendered) * count < job.batch_size:
            rendered.append(pixels)
        if rendered and time.perf_counter() - began > job.seconds:
            break
    found.stages["decode, one worker"] = Rate(done, time.perf_counter() - began)
    return torch.cat(rendered)


def _tower_rate(runner: Runner, pixels: Tensor, seconds: float) -> Rate:
    """Views per second of the tower alone, on full batches."""
    batch = pixels.repeat(-(-runner.batch_size // len(pixels)), 1, 1, 1)[: runner.batch_size].to(runner.device)
    return timed(lambda: runner(normalise(batch, runner.spec.preprocess)), len(batch), seconds)


def embed_some_images(
    runner: Runner, images: pa.Table, views: Views, count: int, seconds: float
) -> tuple[set[int], Rate, list[str]]:
    """Run `embed_images` until it was measured for `seconds`, one part a batch.

    Returns:
        Rows that could be read, photos a second, and a reason for each of the sample's photos that could not be.
    """
    per_batch = max(1, runner.batch_size // count)
    rows = sample_rows(len(images), MOST_BATCHES * per_batch)
    # the first batch is short, as a table's last one is: oneDNN keeps buffers for every batch size that it has met
    ends = range(-(-per_batch // 2), MOST_BATCHES * per_batch + 1, per_batch)
    parts = [Part(number, start, end) for number, (start, end) in enumerate(itertools.pairwise([0, *ends]))]
    ids: set[str] = set()
    skipped: dict[str, str] = {}
    steps = embed_images(runner, images.take(rows), parts, range(count), views, "")

    def batches() -> Iterable[int]:
        for part, shard in steps:
            ids.update(shard.ids)
            skipped.update(shard.skipped)
            yield part.stop - part.start

    # the first batches wait for the workers to start, which a real run does once
    rate = timed_steps(batches(), warm=max(1, runner.workers), seconds=seconds)
    steps.close()  # type: ignore[attr-defined]  # a generator; its workers end with it
    taken = np.unique(rows)
    of_row = dict(zip(images.column("id").take(taken).to_pylist(), taken.tolist(), strict=True))
    return {of_row[id] for id in ids}, rate, list(skipped.values())


def _measure_texts(found: EmbedMeasures, job: EmbedJob, runner: Runner, corpus: Corpus) -> None:
    split = "train" if "text-train" in found.manifests else "val"
    captions = (corpus.train if split == "train" else corpus.val).require_captions().column("text").unique()
    say("measuring the captions: tokenising, then the teacher's text tower")
    sample = captions.take(pa.array(sample_rows(len(captions), min(2 * len(captions), MOST_TOKENISED)))).to_pylist()
    half = len(sample) // 2
    spec = TokenizerSpec(**runner.spec.tokenizer)
    tokenize(spec, sample[:half])  # fills the word table, as the first thousands of a real run do
    began = time.perf_counter()
    tokens = tokenize(spec, sample[half:])
    tokenising = Rate(len(tokens), time.perf_counter() - began)
    found.stages["tokenise"] = tokenising
    found.tokens_per_caption = len(tokens.flat) / len(tokens)
    found.token_bytes = tokens.flat.itemsize
    probe = embed_some_texts(runner, captions, 2 * runner.batch_size)
    # whole parts only: `embed_texts` goes from short captions to long ones
    count = int(min(MOST_TEXTS, max(probe.items, probe.per_second * job.seconds)))
    rate = embed_some_texts(runner, captions, -(-count // runner.batch_size) * runner.batch_size)
    for table in found.manifests:
        if table.startswith("text"):
            found.embedding[table] = rate
    tower = max(rate.seconds - tokenising.seconds_for(rate.items), 1e-9)
    found.stages["teacher, text tower"] = Rate(rate.items, tower)


def embed_some_texts(runner: Runner, captions: pa.Array, count: int) -> Rate:
    """Run `embed_texts` over one part of `count` captions."""
    table = pa.table({"id": captions.take(pa.array(sample_rows(len(captions), count)))})
    began = time.perf_counter()
    for _ in embed_texts(runner, table, [Part(0, 0, count)], range(1), ""):
        pass
    return Rate(count, time.perf_counter() - began)


def largest_embed_batch(runner: Runner, most: int) -> int:
    """Views or captions that fit into one forward pass: grown until out of memory on CUDA, extrapolated on the CPU."""
    say(f"measuring the largest batch of the teacher's {runner.spec.tower} tower")
    return largest_that_fits(lambda size: runner(runner.blank(size)), runner.device, runner.batch_size, most)
