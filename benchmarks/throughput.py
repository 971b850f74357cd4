"""Training throughput: the original pipeline, ours, and the floor under both, in one run.

    python benchmarks/throughput.py --data ../shared/flickr8k
    python benchmarks/throughput.py --data ../shared/flickr8k --tower image --precision bf16-mixed

- original: the teacher runs at every step, captions are padded to 77 tokens, all in float32 (`fit --target online`)
- ours: targets from the store, as `clip-distill fit` runs it
- packed: the same from a packed copy of the photos, made beforehand (`--loader.packed`), at the last precision
- ours less P: ours, at each precision, with the part P of each photo's patches left out
  (`--student.options.patch_dropout P`; `--patch_dropout` says which parts)
- floor: the student's forward and backward pass and its optimiser's step, on tensors that lie in memory; no data
  loading, no Trainer, no logging, no clipping

Each measurement runs in a process of its own, which also tells its peak memory; the modes take turns, so that what
else the machine does falls on all alike. Students are `fit`'s defaults; the teacher has the size of ViT-B/32 and random
weights, which cost as much as trained ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours

LOSS = {"image": ["cosine"], "text": ["cosine"]}
ORIGINAL_LOSS = ["l1", "ce", "kl"]
WARM = 2  # steps before the clock starts


@dataclass(frozen=True)
class Job:
    """One measurement: `tower` and `mode` ("original", "ours" or "floor") at a precision of the Trainer's."""

    tower: str
    mode: str
    precision: str
    data: str
    store: str
    teacher: str
    batch_size: int
    steps: int
    packed: bool = False
    student: tuple[tuple[str, float], ...] = ()  # options that differ from the default's
    resident: bool | Literal["auto", "memory"] = "auto"
    compile: bool = False


@dataclass(frozen=True)
class Measured:
    """Samples per second, and peak bytes of the process with its loader's workers."""

    rate: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for `clip-distill embed`")
    parser.add_argument("--teacher", help="by default a ViT-B/32 of random weights")
    parser.add_argument("--tower", choices=["image", "text"], nargs="+", default=["image", "text"])
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"], help="of ours and the floor")
    parser.add_argument("--images", type=int, default=1024, help="photos to train on")
    parser.add_argument("--captions", type=int, default=8192, help="captions to train on, at most")
    parser.add_argument("--image_batch", type=int, default=64)
    parser.add_argument("--text_batch", type=int, default=256)
    parser.add_argument("--original_steps", type=int, default=4, help="steps of the original, two of them to warm up")
    parser.add_argument(
        "--patch_dropout", type=float, nargs="*", default=[0.5, 0.75], help="parts of a photo to leave out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), given)


def run(root: Path, given: argparse.Namespace) -> None:
    from clip_distill.system.openmp import wait_shortly

    wait_shortly()  # as every command does, before torch is loaded
    from parts import make_part, save_big_teacher

    from clip_distill.verbs import run as run_verb

    teacher = given.teacher or save_big_teacher(root / "teacher")
    make_part(given.data, root / "data", given.images)
    options = ["--data", str(root / "data"), "--teacher", teacher, "--store", str(root / "store")]
    run_verb("embed", options)
    for tower in given.tower:
        batch_size = given.image_batch if tower == "image" else given.text_batch
        samples = given.images if tower == "image" else given.captions
        jobs = {}
        for mode, precision in modes(given.precision):
            steps = given.original_steps if mode == "original" else samples // batch_size
            jobs[f"{mode} {precision}"] = Job(
                tower, mode, precision, str(root / "data"), str(root / "store"), teacher, batch_size, steps
            )
        if tower == "image":
            last = jobs[f"ours {given.precision[-1]}"]
            jobs[f"packed {given.precision[-1]}"] = replace(last, packed=True)
            for part, each in product(given.patch_dropout, given.precision):
                jobs[f"ours less {part} {each}"] = replace(jobs[f"ours {each}"], student=(("patch_dropout", part),))
        report(tower, repeat(jobs, given.repeats))


def modes(precisions: list[str]) -> list[tuple[str, str]]:
    """The original, then ours and the floor at each precision."""
    return [("original", "32-true"), *((mode, each) for each in precisions for mode in ("ours", "floor"))]


def repeat(jobs: dict[str, Job], repeats: int) -> dict[str, list[Measured]]:
    """Every job once, then again, each time in a fresh process."""
    results: dict[str, list[Measured]] = {name: [] for name in jobs}
    spawn = multiprocessing.get_context("spawn")
    for turn in range(repeats):
        for name, job in jobs.items():
            with ProcessPoolExecutor(1, spawn) as pool:
                results[name].append(pool.submit(measure, job).result())
            print(f"{job.tower}, turn {turn + 1}, {name}: {results[name][-1].rate:.1f}/s", file=sys.stderr, flush=True)
    return results


def measure(job: Job) -> Measured:
    """Run a job in this process."""
    from clip_distill.system.allocator import keep_memory

    keep_memory()
    rate = floor(job) if job.mode == "floor" else train(job)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return Measured(rate, sum(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024)


def assembled(job: Job) -> tuple[Any, Any, Any]:
    """The recipe, its module and its data, as `fit` makes them."""
    from clip_distill.recipe import Loader, Loss, Recipe, Student
    from clip_distill.train.assemble import assemble
    from clip_distill.train.begin import online_target

    original = job.mode == "original"
    recipe = Recipe(
        tower=job.tower,  # type: ignore[arg-type]
        data=job.data,
        store=job.store,
        out=tempfile.mkdtemp(dir=Path(job.store).parent),
        student=Student(options=dict(job.student)),
        loss=Loss(ORIGINAL_LOSS if original else LOSS[job.tower]),
        loader=Loader(
            batch_size=job.batch_size,
            packed=str(Path(job.store) / "packed") if job.packed else None,
            resident=job.resident,
        ),
        target="online" if original else "stored",
        teacher=job.teacher,
        augment="original" if original and job.tower == "image" else "none",
        compile=job.compile,
    )
    online, teach = online_target(recipe)
    module, data = assemble(recipe, online, teach)
    if original and job.tower == "text":
        as_original(module, data, teach)
    return recipe, module, data


def as_original(module: Any, data: Any, teach: Any) -> None:
    """Give both text towers open_clip's own forward pass, on 77 tokens whatever a caption's length."""
    from open_clip.transformer import TextTransformer

    for tower in (module.student, teach.module):
        tower.__class__ = TextTransformer
    context = module.spec.tokenizer["context_length"]
    data.train.width, data.train.teacher_pad = context, (data.train.teacher_pad[0], context)


def train(job: Job) -> float:
    """Samples per second of `fit`'s own Trainer, from the first step after `WARM` to the end of the last one."""
    import lightning as L

    from clip_distill.train.settings import TRAINER_DEFAULTS
    from clip_distill.train.trainer import make_trainer, quiet_lightning

    class Clock(L.Callback):
        seen, began, ended = 0, 0.0, 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == WARM:
                self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.ended = time.perf_counter()
            self.seen += len(batch.rows) if index >= WARM else 0

    quiet_lightning()
    recipe, module, data = assembled(job)
    clock = Clock()
    options = TRAINER_DEFAULTS | {"max_epochs": 1, "max_steps": job.steps, "limit_val_batches": 0}
    options |= {"precision": job.precision, "callbacks": clock, "enable_progress_bar": False}
    trainer, *_ = make_trainer(recipe, options, Path(recipe.out))
    trainer.fit(module, data)
    return clock.seen / (clock.ended - clock.began)


def floor(job: Job) -> float:
    """Samples per second of the bare step on the very batches that `fit` would bring, made beforehand."""
    import torch

    from clip_distill.pixels.views import normalise
    from clip_distill.recipe import Optimizer
    from clip_distill.train.optimizer import make_optimizer

    _, module, data = assembled(job)
    student, objective = module.student.train(), module.objective
    optimizer = make_optimizer(student, Optimizer(), fused=True)
    batches = [
        (normalise(batch.inputs, module.spec.preprocess) if job.tower == "image" else batch.inputs, batch.target)
        for batch in islice(data.train_dataloader(), job.steps)
    ]
    seen, began = 0, 0.0
    for number, (inputs, target) in enumerate(batches):
        if number == WARM:
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16-mixed"):
            embeddings = student(inputs)
        objective(embeddings.float(), target)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += len(inputs) if number >= WARM else 0
    return seen / (time.perf_counter() - began)


def report(tower: str, results: dict[str, list[Measured]]) -> None:
    """A Markdown table; each ratio is of two measurements of the same turn."""
    original = results["original 32-true"]
    print(f"\n| {tower} | samples/s | times the original | share of the floor | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, measured in results.items():
        mode, precision = name.rsplit(maxsplit=1)
        times = spread([one.rate / base.rate for one, base in zip(measured, original, strict=True)], "{:.1f}×".format)
        share = ""
        if mode in ("ours", "packed"):
            floors = results[f"floor {precision}"]
            share = spread([a.rate / b.rate for a, b in zip(measured, floors, strict=True)], "{:.1%}".format)
        peak = max(one.peak for one in measured) / 2**20
        rate = spread([one.rate for one in measured], "{:,.1f}".format)
        print(f"| {mode}, {precision} | {rate} | {times} | {share} | {peak:,.0f} MiB |")


def spread(values: list[float], write: Callable[[float], str]) -> str:
    """Median, lowest and highest."""
    return f"{write(statistics.median(values))} ({write(min(values))} … {write(max(values))})"


if __name__ == "__main__":
    main()
