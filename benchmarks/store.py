"""What a store costs: build and read rates, memory, time to open, at a size of your choice.

    python benchmarks/store.py --rows 1000000 --folder /tmp/store-benchmark

Builds an image table of made-up embeddings (float16, 512 wide) through the same writer as `embed`, and beside it one
of a tenth of the size at most, to compare the time to open. Each measure runs in a process of its own and prints the
memory that it added to what the interpreter and torch take: peak and present RSS, and the private part of it
(`Private_Dirty` of /proc/self/smaps_rollup). Workers read the rows where there are any; the peak of one is printed
whole, interpreter, torch and all.
Shapes: N rows, B batch, D embedding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clip_distill.store.build import Part, build_table
from clip_distill.store.manifest import Manifest
from clip_distill.store.table import Store
from clip_distill.store.verify import problems
from clip_distill.store.write import Shard

DIM, BATCH, BATCHES = 512, 1024, 500


def manifest() -> Manifest:
    teacher: dict[str, Any] = {"name": "made up", "weights_sha256": "0" * 64, "embed_dim": DIM, "logit_scale": 1.0}
    teacher |= {"model_cfg": {}, "preprocess": {}, "tokenizer": {}}
    return Manifest("image", "train", teacher, 1, "none", 0, "float16", "fp32")


def ids(rows: int) -> pa.Table:
    """Ids like those of photos, N at once as `scan` gives them."""
    numbers = pc.utf8_lpad(pa.array(np.arange(rows)).cast(pa.large_string()), 12, "0")
    around = (pa.scalar(text, pa.large_string()) for text in ("image/", ".jpg", ""))
    return pa.table({"id": pc.binary_join_element_wise(next(around), numbers, *around)})


def embed_parts(items: pa.Table, parts: list[Part], numbers: range) -> Iterator[tuple[Part, Shard]]:
    random = np.random.default_rng(0)
    for part in tqdm(parts, "build", unit=" shards"):
        names = items.column(0).slice(part.start, part.stop - part.start).to_pylist()
        yield part, Shard(names, [random.standard_normal((len(names), DIM), np.float32) for _ in numbers])


def build(folder: Path, rows: int) -> dict[str, float]:
    """Rows a second, and megabytes a second, of the writer (made-up numbers included)."""
    items = ids(rows)
    start = time.perf_counter()
    build_table(folder, manifest(), items, lambda _: embed_parts, 8192)
    seconds = time.perf_counter() - start
    return {"rows/s": rows / seconds, "MB/s": rows * DIM * 2 / 1e6 / seconds, "seconds": seconds}


class Batches(Dataset[torch.Tensor]):
    """Random batches of the whole store, an item each."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> torch.Tensor:
        rows = np.random.default_rng(index).integers(len(self.store), size=BATCH)
        return torch.from_numpy(self.store.embeddings(rows))


def measure_open(folder: Path) -> dict[str, float]:
    """Seconds from nothing to the first row, best of five: the files are in the page cache."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        store = Store(folder)
        store.embeddings(np.array([len(store) // 2]))
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds)}


def measure_read(folder: Path, workers: int) -> dict[str, float]:
    """Rows a second through a DataLoader, after a first pass that brings the workers up."""
    loader = DataLoader(Batches(Store(folder)), batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    for _ in loader:
        pass
    start = time.perf_counter()
    for _ in loader:
        pass
    result = {"rows/s": BATCH * BATCHES / (time.perf_counter() - start)}
    if workers:
        del loader  # ends the workers, which the kernel then accounts for
        result["a worker's peak RSS MB"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    return result


def measure_ids(folder: Path) -> dict[str, float]:
    """Seconds and memory of `ids`."""
    start = time.perf_counter()
    size = Store(folder).ids.nbytes / 1e6
    return {"seconds": time.perf_counter() - start, "ids MB": size}


def measure_find(folder: Path, share: float) -> dict[str, float]:
    """Rows a second of `find`, a share of the ids in another order, and its memory beside the ids that it is given."""
    store = Store(folder)
    rows = np.random.default_rng(0).permutation(len(store))[: round(len(store) * share)]
    asked = Store(folder).ids.take(pa.array(rows))
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from what there is
    before = memory()["RSS MB"]
    start = time.perf_counter()
    found = store.find(asked)
    seconds = time.perf_counter() - start
    assert (found == rows).all()
    result = {"asked for": len(rows), "their MB": asked.nbytes / 1e6, "seconds": seconds, "ids/s": len(rows) / seconds}
    return result | {"find's own peak MB": memory()["peak RSS MB"] - before}


def measure_verify(folder: Path) -> dict[str, float]:
    """MB a second that `store verify` reads and hashes."""
    start = time.perf_counter()
    assert not problems(Store(folder))
    return {"MB/s": len(Store(folder)) * DIM * 2 / 1e6 / (time.perf_counter() - start)}


def memory() -> dict[str, float]:
    """MB: peak and present RSS, and what is private and dirty at present."""
    fields = {}
    for path in ("/proc/self/status", "/proc/self/smaps_rollup"):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()
    names = {"peak RSS MB": "VmHWM", "RSS MB": "VmRSS", "private MB": "Private_Dirty"}
    return {name: int(fields[field][0]) / 1e3 for name, field in names.items()}


def in_fresh_process(what: str, folder: Path, *arguments: object) -> dict[str, float]:
    """Run one `measure_…` in an interpreter of its own; memory is what it takes over the interpreter's and torch's."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        what,
        "--folder",
        str(folder),
        "--arguments",
        json.dumps(arguments),
    ]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-benchmark"))
    parser.add_argument("--keep", action="store_true", help="keep the tables, to measure again without building")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        before = memory()
        result = globals()[f"measure_{options.measure}"](options.folder, *options.arguments)
        after = memory()
        print(json.dumps(result | {f"{name} added": after[name] - before[name] for name in after}))
        return
    need, free = options.rows * DIM * 2.2, shutil.disk_usage(options.folder.parent).free
    if need > free:
        sys.exit(f"{options.folder}: expected {need / 1e9:.1f} GB of free disk, found {free / 1e9:.1f} GB")
    print(f"{options.rows:,} rows × {DIM} float16, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    small, large = options.folder / "small", options.folder / "large"
    if not (large / "manifest.json").is_file():
        build(small, min(100_000, options.rows // 10))
        show("build", in_fresh_process("build", large, options.rows))
    for name, folder in (("open, small", small), ("open, large", large)):
        show(name, in_fresh_process("open", folder))
    for workers in (0, 1, 2):
        show(f"read, {workers} workers", in_fresh_process("read", large, workers))
    show("ids", in_fresh_process("ids", large))
    for share in (1, 0.001):
        show(f"find, {share:.1%} of the ids", in_fresh_process("find", large, share))
    show("verify", in_fresh_process("verify", large))
    if not options.keep:
        shutil.rmtree(options.folder)


def show(title: str, result: dict[str, float]) -> None:
    print(
        f"{title}: " + ", ".join(f"{name} {value:,.{4 if value < 10 else 0}f}" for name, value in result.items()),
        flush=True,
    )


measure_build = build

if __name__ == "__main__":
    main()
