"""Photo search measured: indexing against what decoding and the student alone allow, against rclip, and questions.

    python benchmarks/search.py --photos PHOTOS --student EXPORT --out results/search
    python benchmarks/search.py --photos PHOTOS --student EXPORT --rclip RCLIP/bin/rclip \\
        --rclip_data own=folders/rclip-b32 student=folders/rclip-student

Indexing: photos a second of a new index; of decoding alone, in the same threads; of the student alone, on the pixels
decoded before; and what the two allow together, 1 / (1 / decoding + 1 / student), since both fill all cores. rclip
indexes the same folder with each data folder given (`clip-distill export --to rclip` writes one). Questions: made-up
vectors of unit length; from text to paths, the student's text tower included; median of 30. `--dims 128 64` compares
indexes of fewer numbers with the whole: the share of the first ten answers to 80 questions that stays. All numbers:
OUT.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import clip_distill as cd
from clip_distill.corpus.report import Skips
from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.index import Facts, File, Index
from clip_distill.photosearch.narrow import narrowed
from clip_distill.photosearch.update import BATCH, Progress, found_files, read, update
from clip_distill.pixels.plain import plain_view
from clip_distill.system.allocator import most_resident_bytes
from clip_distill.system.cores import cores
from clip_distill.system.files import write_json

THINGS = (
    "two dogs",
    "a red car",
    "people",
    "a child",
    "a man",
    "a horse",
    "a bicycle",
    "a football",
    "a boat",
    "girls",
)
PLACES = ("on a beach", "in the snow", "on grass", "in a street", "at night", "near water", "jumping", "from above")
QUESTIONS = [f"{thing} {place}" for thing, place in itertools.product(THINGS, PLACES)]


def indexing(photos: str, model: Any, folder: Path) -> dict[str, float]:
    """Photos a second: indexed, decoded alone, and by the student alone, in as many threads."""
    encoder = model.encoder("image")
    files = list(found_files([photos], Skips()).values())
    view = plain_view(encoder.preprocess)
    for file in files:  # all of them in the system's memory, for every way alike
        Path(file.path).read_bytes()
    began = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        waiting = deque(pool.submit(read, file, view) for file in files[:512])
        rest, pixels = iter(files[512:]), []
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(pool.submit(read, file, view) for file in itertools.islice(rest, 1))
            if isinstance(found, tuple) and len(pixels) < 512:
                pixels.append(found[1])
    decoding = len(files) / (time.perf_counter() - began)
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    twin = encoder.for_threads()
    with ThreadPoolExecutor(cores() if twin is not None else 1) as pool:
        for _ in range(2):  # the first time to warm up
            began = time.perf_counter()
            for _ in pool.map(lambda batch: (twin or encoder).images(batch, None), batches):
                pass
            student = len(pixels) / (time.perf_counter() - began)
    index = Index(folder, {"student": "benchmark", "dim": model.embed_dim})
    began = time.perf_counter()
    update(index, [photos], encoder, Progress())
    ours = len(files) / (time.perf_counter() - began)
    floor = 1 / (1 / decoding + 1 / student)
    return {"photos": len(files), "decoding": decoding, "student": student, "floor": floor, "indexed": ours} | {
        "of_floor": ours / floor
    }


def narrower(photos: str, model: Any, folder: Path, dims: list[int]) -> dict[int, float]:
    """Of the first ten answers to each question, the share that an index of fewer numbers gives, too."""
    answers: dict[int, list[set[str]]] = {}
    for dim in (model.embed_dim, *dims):
        index = Index(folder / str(dim), {"student": "benchmark", "dim": dim})
        asked = model if dim == model.embed_dim else narrowed(model, index, [photos])
        engine = Engine(asked, index, [photos])
        engine.bring_up_to_date()
        answers[dim] = [{each["path"] for each in engine.ask(words, fold=False)} for words in QUESTIONS]
    whole = answers[model.embed_dim]
    return {
        dim: statistics.mean(len(some & all_) / 10 for some, all_ in zip(answers[dim], whole, strict=True))
        for dim in dims
    }


def rclip(program: str, data: str, photos: str) -> float:
    """Photos a second of rclip's own indexing; the seconds of an indexed folder's question are taken off."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(data, f"{folder}/data", ignore=shutil.ignore_patterns("db.sqlite3*"))
        environment = os.environ | {"RCLIP_DATADIR": f"{folder}/data"}
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            done = subprocess.run(
                [program, "--top", "1", "--filepath-only", "a dog"],
                cwd=photos, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            seconds.append(time.perf_counter() - began)
            if not done.stdout.strip():
                raise SystemExit(f"rclip with {data}: {done.stderr[-500:]}")
    count = len(found_files([photos], Skips()))
    return count / (seconds[0] - seconds[1])


def questions(student: str, count: int, folder: Path) -> dict[str, float]:
    """Milliseconds of a question, seconds to open, bytes on disk, and memory of a process that opens such a library."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        dim = pool.submit(fill, student, count, folder).result()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(answer, student, count, folder, dim).result()


def fill(student: str, count: int, folder: Path) -> int:
    """Make the library of made-up vectors; their width."""
    dim = cd.load(student).embed_dim
    index = Index(folder, {"student": "benchmark", "dim": dim})
    add_made_up(index, [File(f"/photos/{place // 1000}/{place}.jpg", 1, 1) for place in range(count)])
    return dim


def add_made_up(index: Index, files: Sequence[File]) -> None:
    """Put files into an index, with made-up vectors of unit length."""
    random = np.random.default_rng(0)
    for start in range(0, len(files), 10_000):
        some = files[start : start + 10_000]
        rows = random.standard_normal((len(some), index.dim), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        index.add((Facts(file, 0, 20260101, 4000, 3000), row) for file, row in zip(some, rows, strict=True))


def answer(student: str, count: int, folder: Path, dim: int) -> dict[str, float]:
    """Open it, and ask."""
    model = cd.load(student)
    began = time.perf_counter()
    engine = Engine(model, Index(folder, {"student": "benchmark", "dim": dim}), [])
    opening = time.perf_counter() - began
    engine.ask("first", count=60)
    seconds = []
    for number in range(30):
        began = time.perf_counter()
        engine.ask(f"{QUESTIONS[number % len(QUESTIONS)]} {number}", count=60)
        seconds.append(time.perf_counter() - began)
    disk = sum(path.stat().st_size for path in folder.iterdir())
    memory = most_resident_bytes() / 1e6
    return {"photos": count, "milliseconds": 1000 * statistics.median(seconds), "slowest": 1000 * max(seconds)} | {
        "opening_seconds": opening, "disk_mb": disk / 1e6, "peak_memory_mb": memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="folder to index; not given: questions alone")
    parser.add_argument("--student", required=True, help="a folder that `clip-distill export --to onnx` wrote")
    parser.add_argument("--rclip", help="rclip's program, in an environment of its own")
    parser.add_argument("--rclip_data", nargs="+", default=[], help="name=FOLDER, what RCLIP_DATADIR is")
    parser.add_argument("--dims", nargs="*", type=int, default=[], help="narrower indexes of the photos, compared")
    parser.add_argument("--sizes", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--out", default="results/search", help="files' name, without its ending")
    given = parser.parse_args()
    model, results = cd.load(given.student), {}
    with tempfile.TemporaryDirectory() as folder:
        if given.photos:
            results["indexing"] = indexing(given.photos, model, Path(folder) / "photos")
            print({key: round(value, 3) for key, value in results["indexing"].items()}, flush=True)
            if given.dims:
                results["narrower"] = narrower(given.photos, model, Path(folder) / "narrow", given.dims)
                print(results["narrower"], flush=True)
            for name, data in (each.split("=", 1) for each in given.rclip_data):
                rate = rclip(given.rclip, data, given.photos)
                results[f"rclip {name}"] = {"indexed": rate, "ours": results["indexing"]["indexed"] / rate}
                print(
                    f"rclip {name}: {rate:.1f} photos/s; ours {results[f'rclip {name}']['ours']:.2f} times", flush=True
                )
        results["questions"] = []
        for count in given.sizes:
            results["questions"].append(questions(given.student, count, Path(folder) / str(count)))
            print({key: round(value, 1) for key, value in results["questions"][-1].items()}, flush=True)
    results["machine"] = {"cores": cores(), "python": sys.version.split()[0]}
    write_json(Path(given.out).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
