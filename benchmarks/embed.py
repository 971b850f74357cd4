"""`embed` of photos against the teacher alone, as a ratio: how much of the teacher's time decoding and copying cost.

    python benchmarks/embed.py --data ../shared/flickr8k --teacher local-dir:../shared/teacher
    python benchmarks/embed.py --data ../shared/flickr8k --teacher local-dir:../shared/teacher --side 3000

The teacher alone embeds one batch of pixels that are in its device's memory already, over and over; `embed_images` goes
from files to embeddings, workers and all. The two take turns, since machines slow down and speed up. On a CPU, the
workers decode on the teacher's cores, so no program can reach 100 %: the last line says what is left of the cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tqdm import tqdm

from clip_distill.corpus.layout import scan
from clip_distill.pixels.photos import read_image
from clip_distill.pixels.views import Views, normalise
from clip_distill.store.build import Part
from clip_distill.store.embed import ImageViews, Runner, embed_images
from clip_distill.system.cores import cores
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import pick_device

LARGE = 32  # large JPEGs that are made; repeated to make a table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for `clip-distill embed`")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--side", type=int, help="scale photos up to JPEGs with a shorter side of so many pixels")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--augment", default="crop_flip")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=6, help="that each round measures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    given = parser.parse_args()
    images = scan(given.data).train.require_images()
    spec, module = load_teacher(given.teacher, "image")
    runner = Runner(spec, module, pick_device(given.device), given.precision, given.batch_size, given.workers)
    views = Views(spec.preprocess, given.augment if given.views > 1 else "none")
    with tempfile.TemporaryDirectory() as folder:
        if given.side:
            images = enlarged(images.slice(0, LARGE), given.side, Path(folder))
        compare(runner, images, views, given.views, given.batches, given.rounds)


def enlarged(images: pa.Table, side: int, folder: Path) -> pa.Table:
    """The photos, scaled up to JPEGs with a shorter side of `side` pixels."""
    records = images.to_pylist()
    for number, record in enumerate(tqdm(records, "enlarging")):
        image = read_image(record["path"], record["offset"], record["size"])
        scale = side / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        record |= {"path": str(folder / f"{number}.jpg"), "offset": -1, "size": -1}
        image.resize(size, Image.Resampling.LANCZOS).save(record["path"], quality=90)
    return pa.Table.from_pylist(records, images.schema)


def compare(runner: Runner, images: pa.Table, views: Views, count: int, batches: int, rounds: int) -> None:
    """Measure both, in turns, and print the ratio of each turn."""
    dataset = ImageViews(images, views, count)
    per_batch = max(1, runner.batch_size // count)
    table = images.take(np.resize(np.arange(len(images)), per_batch * (queue(runner) + batches + 1)))
    began = time.process_time()
    rendered = [dataset[row % len(images)][1] for row in range(per_batch)]
    decoding = (time.process_time() - began) / per_batch
    pixels = torch.cat([each for each in rendered if isinstance(each, torch.Tensor)]).to(runner.device)
    resident = normalise(pixels, runner.spec.preprocess)
    alone, whole = list[Rates](), list[Rates]()
    for _ in range(rounds):
        alone.append(teacher_rate(runner, resident, batches, per_batch))
        whole.append(embed_rate(runner, table, views, count, batches, per_batch))
    rate = statistics.median(each.wall for each in alone)
    on_cpu = runner.device.type == "cpu"
    print(f"{runner.device}, {runner.workers} worker(s), {cores()} cores, load average {os.getloadavg()[0]:.1f}")
    print(f"teacher alone  {rate:8.1f} photos/s ({count} views each), batches of {runner.batch_size}")
    embed = statistics.median(each.wall for each in whole)
    print(f"embed          {embed:8.1f} photos/s; one core brings {1 / decoding:.1f} photos/s")
    show("embed/teacher, by the clock", [each.wall / teacher.wall for each, teacher in zip(whole, alone, strict=True)])
    if on_cpu:
        # says what the main process does beside the teacher, also on a machine that others use
        main = [each.cpu / teacher.cpu for each, teacher in zip(whole, alone, strict=True)]
        show("embed/teacher, by the main process's CPU time", main)
        print(f"decoding leaves {100 / (1 + decoding * rate / cores()):.1f} % of the teacher's rate on the same cores")


def show(what: str, ratios: list[float]) -> None:
    percent = [100 * ratio for ratio in ratios]
    print(
        f"{what}: {statistics.median(percent):.1f} % ({min(percent):.1f}–{max(percent):.1f} in {len(percent)} rounds)"
    )


def queue(runner: Runner) -> int:
    """Batches that workers have ready: before they are used up, a loader looks faster than it is."""
    return max(1, 2 * runner.workers) + 1


class Rates(NamedTuple):
    """Photos per second of the clock, and of this process's CPU time."""

    wall: float
    cpu: float

    @classmethod
    def since(cls, began: tuple[float, float], photos: int) -> Rates:
        return cls(photos / (time.perf_counter() - began[0]), photos / (time.process_time() - began[1]))


def teacher_rate(runner: Runner, resident: torch.Tensor, batches: int, per_batch: int) -> Rates:
    """The teacher alone."""
    runner(resident)
    began = time.perf_counter(), time.process_time()
    for finish in [runner.start(resident) for _ in range(batches)]:
        finish()
    return Rates.since(began, batches * per_batch)


def embed_rate(runner: Runner, table: pa.Table, views: Views, count: int, batches: int, per_batch: int) -> Rates:
    """All of `embed_images`, after its workers have started and filled their queue."""
    warm = queue(runner)
    parts = [Part(number, number * per_batch, (number + 1) * per_batch) for number in range(len(table) // per_batch)]
    for number, _ in enumerate(embed_images(runner, table, parts, range(count), views, "embed"), 1):
        if number == warm:
            began = time.perf_counter(), time.process_time()
        if number == warm + batches:  # not at the very end: a part is handed out when the next one has begun
            rates = Rates.since(began, batches * per_batch)
    return rates


if __name__ == "__main__":
    main()
