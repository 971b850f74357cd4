"""Measure what `fit` does: the real datasets, loaders, Distiller and Trainer, for a few steps.

No store exists yet: what `stand_in` has is as costly to learn from.
Shapes: N rows, B batch, D embedding, S image side, C context length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import psutil
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from clip_distill.batches.datasets import Batch, Captions, Images
from clip_distill.batches.loader import DistillData, LoaderOptions
from clip_distill.corpus.layout import Corpus
from clip_distill.evaluation.holdout import HeldOut, held
from clip_distill.losses import needed
from clip_distill.pixels.views import Views
from clip_distill.planning.estimate import Rate, sample_rows
from clip_distill.planning.memory import largest_that_fits
from clip_distill.planning.stand_in import RandomStore, SameBatch, random_pairs, random_validation
from clip_distill.recipe import Recipe
from clip_distill.store.table import NO_IDS
from clip_distill.system.processes import PeakMemory
from clip_distill.system.talk import say
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec, count_parameters, pick_device
from clip_distill.train.assemble import make_objective, scan_corpus
from clip_distill.train.distill import Distiller
from clip_distill.train.student import build_student, same_tokenizer
from clip_distill.train.trainer import quiet_lightning
from clip_distill.train.validation import Validation

MOST_TOKENISED = 65_536
MANY_EPOCHS = 1000  # the clock ends the measuring, but a schedule needs an end
# of the recipe's Trainer options, those that change what a step costs
KEPT = {"precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "benchmark"}
KEPT |= {"deterministic", "detect_anomaly"}


@dataclass(frozen=True)
class FitJob:
    """What `fit` is to do.

    Args:
        recipe: The run.
        trainer: The Trainer's options.
        teacher: The teacher's record.
        views: V, stored views per training photo.
        augment: What made them.
        seed: The view seed.
        good_rows: Rows of training photos that can be read.
        readable: Their share of the sample that they are of.
        other_rows: Of the other tower's training table, from which banks are drawn.
        device: As of `pick_device`.
        seconds: How long each stage is measured.
    """

    recipe: Recipe
    trainer: dict[str, Any]
    teacher: dict[str, Any]
    views: int
    augment: str
    seed: int
    good_rows: list[int]
    readable: float
    other_rows: int
    device: str
    seconds: float


@dataclass(frozen=True)
class FitMeasures:
    """What was measured; times in seconds, sizes in bytes.

    Args:
        parameters: Of the student; counted.
        trainable: Those of them that are not frozen; counted.
        rows: Training rows; extrapolated where photos can't be read.
        steps: Of an epoch.
        val_rows: Rows that the student embeds to validate.
        step: Training steps, loading included.
        validation: Rows embedded to validate.
        metrics: Ranking the whole validation set once.
        startup: From the process's start to the first step.
        peak: Of the process and its workers.
        device_peak: Of CUDA's memory; None elsewhere.
        largest: Largest batch that fits.
    """

    parameters: int
    trainable: int
    rows: int
    steps: int
    val_rows: int
    step: Rate
    validation: Rate
    metrics: float
    startup: float
    peak: int
    device_peak: int | None
    largest: int


class Clock(L.Callback):
    """Times steps of training until there is enough, and batches of validation; the first of each warm up."""

    def __init__(self, seconds: float, least: int = 2) -> None:
        self.seconds, self.least = seconds, least
        self.first_step = 0.0
        self.times: list[float] = []  # after each step
        self.val_times: list[float] = []
        self.val_rows: list[int] = []

    def _now(self, trainer: L.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, index: int) -> None:
        self.first_step = self.first_step or time.time()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        self.times.append(self._now(trainer))
        trainer.should_stop = len(self.times) > self.least and self.times[-1] - self.times[0] > self.seconds

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int, loader: int = 0
    ) -> None:
        self.val_times.append(self._now(trainer))
        self.val_rows.append(len(batch.rows))

    def step(self) -> Rate:
        return Rate(len(self.times) - 1, self.times[-1] - self.times[0])

    def validation(self) -> Rate:
        return Rate(sum(self.val_rows[1:]), self.val_times[-1] - self.val_times[0])


def random_rows(width: int) -> Callable[..., torch.Tensor]:
    """A stand-in for what a batch's samples are paired with."""
    return lambda rows, *key: torch.randn(len(rows), width, device=rows.device)


def measure_fit(job: FitJob) -> FitMeasures:
    """Train the student for a few steps, and validate a few batches; meant for a process of its own."""
    quiet_lightning(entirely=True)
    recipe, device = job.recipe, pick_device(job.device)
    with PeakMemory() as memory:
        corpus = scan_corpus(recipe)
        spec, student = build_student(recipe, job.teacher, corpus)
        train, whole, some = (_images if recipe.tower == "image" else _captions)(job, spec, corpus)
        objective = make_objective(recipe.loss, _bank(job, spec))
        module = Distiller(spec, student, objective, recipe.optimizer, whole, pairs=random_rows(spec.embed_dim))
        module.prepare(recipe)
        # three batches at least: the first warms up
        val_batch_size = min(recipe.loader.val_batch_size, -(-len(some) // 3))
        options = LoaderOptions(recipe.loader.batch_size, val_batch_size, recipe.loader.workers)
        data = DistillData(train, some, job.views if recipe.tower == "image" else 1, options, recipe.seed)
        say(f"measuring training steps of the {recipe.tower} student, {len(train):,} rows, batch {options.batch_size}")
        clock = Clock(job.seconds)
        make_trainer(job, device, clock, limit_val_batches=0).fit(module, data)
        say("measuring its validation")
        module.validation = random_pairs(recipe.one, len(some), spec.embed_dim)
        make_trainer(job, device, clock).validate(module, data, verbose=False)
        began = time.perf_counter()
        whole.metrics(torch.randn(len(whole.own), spec.embed_dim))
        metrics = time.perf_counter() - began
    on_cuda = device.type == "cuda"
    device_peak = torch.cuda.max_memory_allocated(device) if on_cuda else None
    return FitMeasures(
        parameters=count_parameters(student),
        trainable=sum(each.numel() for each in student.parameters() if each.requires_grad),
        rows=len(train),
        steps=len(data.train_dataloader()),
        val_rows=len(whole.own),
        step=clock.step(),
        validation=clock.validation(),
        metrics=metrics,
        startup=clock.first_step - psutil.Process().create_time(),
        peak=memory.peak,
        device_peak=device_peak,
        largest=largest_fit_batch(job, module, device, len(train)),
    )


def make_trainer(job: FitJob, device: torch.device, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A Trainer on one device, with what of the recipe's options changes a step, and no files."""
    kept = {name: value for name, value in job.trainer.items() if name in KEPT and value is not None}
    one: Any = [device.index] if device.index is not None else 1
    return L.Trainer(
        **kept,
        **{"max_epochs": MANY_EPOCHS, "num_sanity_val_steps": 0} | options,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=one,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _bank(job: FitJob, spec: TowerSpec) -> dict[str, torch.Tensor]:
    """What the losses need beside the batch: numbers for the other tower's embeddings, drawn as float16 at first."""
    loss = job.recipe.loss
    if "bank" not in needed(loss.names):
        return {}
    rows = np.arange(min(loss.bank, job.other_rows))
    return {"bank": torch.from_numpy(RandomStore(spec.embed_dim, NO_IDS).embeddings(rows)).float()}


def _validation(job: FitJob, corpus: Corpus, dim: int, rows: int) -> tuple[Validation | HeldOut, int, int]:
    """What `fit` validates by, how many of `rows` are left to train on, and how many to validate on: three batches."""
    held_out = held(rows, round(rows * job.recipe.holdout)) if corpus.val.alone else 0
    whole = random_validation(job.recipe.one, corpus.val, dim, held_out)
    return whole, rows - held_out, max(3, min(len(whole.own), 3 * job.recipe.loader.val_batch_size))


def _images(job: FitJob, spec: TowerSpec, corpus: Corpus) -> tuple[Images, Validation | HeldOut, Images]:
    """As many photos as the store will have, all of them ones that can be read."""
    photos = corpus.train.require_images()
    whole, count, some = _validation(job, corpus, spec.embed_dim, max(1, round(len(photos) * job.readable)))
    store = RandomStore(spec.embed_dim, photos.column("id").combine_chunks().slice(0, count))
    rows = store.find(photos.column("id"))
    known = photos.take(np.resize(np.array(job.good_rows), count))
    train = Images(known, Views(spec.preprocess, job.augment, job.seed), store, rows[rows >= 0])
    return train, whole, Images(photos.take(np.resize(np.array(job.good_rows), some)), Views(spec.preprocess))


def _captions(job: FitJob, spec: TowerSpec, corpus: Corpus) -> tuple[Captions, Validation | HeldOut, Captions]:
    """As many captions as there are; of very many, a sample is tokenised and repeated."""
    captions = corpus.train.require_captions().column("text").unique()
    validation, count, some = _validation(job, corpus, spec.embed_dim, len(captions))
    captions = captions.slice(0, count)
    tokenizer = TokenizerSpec(**spec.tokenizer)
    pad, width = tokenizer.pad_id, None if spec.causal else tokenizer.context_length
    sample = captions.take(pa.array(sample_rows(len(captions), min(len(captions), MOST_TOKENISED))))
    tokens = tokenize(tokenizer, sample.to_pylist())
    whole = tokens.take(np.resize(np.arange(len(tokens)), len(captions)))
    store = RandomStore(spec.embed_dim, captions, whole)
    rows = store.find(captions)
    if same_tokenizer(spec.tokenizer, job.teacher["tokenizer"]):
        whole = store.tokens.take(rows)
    else:
        store.ids.take(pa.array(rows)).to_pylist()  # of which `fit` tokenises all
    train = Captions(whole, pad, width, store, rows)
    return train, validation, Captions(tokens.take(np.resize(np.arange(len(tokens)), some)), pad, width)


def largest_fit_batch(job: FitJob, module: Distiller, device: torch.device, most: int) -> int:
    """Samples per step that fit; captions at their full context length."""
    say(f"measuring the largest batch of the {module.spec.tower} student")

    def run(size: int) -> None:
        if module.spec.tower == "text":
            inputs = torch.zeros(size, module.spec.tokenizer["context_length"], dtype=torch.int64)
        else:
            side = module.spec.preprocess["size"]
            shape = (side, side) if isinstance(side, int) else tuple(side)
            inputs = torch.zeros(size, 3, *shape, dtype=torch.uint8)
        batch = Batch(inputs, torch.randn(size, module.spec.embed_dim), None, torch.arange(size))
        loader = DataLoader(SameBatch(batch), batch_size=None)
        make_trainer(job, device, limit_val_batches=0, limit_train_batches=2, max_epochs=1).fit(module, loader)

    return largest_that_fits(run, device, job.recipe.loader.batch_size, most)
