"""Where an index of photos may keep its vectors: four embedded ways, on made-up vectors of unit length.

    pip install sqlite-vec pysqlite3-binary usearch lancedb
    python benchmarks/vectors.py --sizes 10000 100000 1000000 --out results/vectors

Each keeps N paths, sizes, times and vectors of 256 numbers, is opened anew, and answers 20 questions for the nearest
100; a process that adds batches of 256 and says so after each is killed, and what it said is looked for again.
`sqlite`: SQLite with a float16 blob a row, read into one float32 matrix (what `clip-distill search` does).
`sqlite-vec`: its vec0 table of int8; many builds of Python can't load it, so it runs by pysqlite3.
`usearch`: an HNSW graph of int8 in a file, beside SQLite for the paths. `lancedb`: its table, searched flat.
Milliseconds are medians; all numbers: OUT.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clip_distill.photosearch.index import Facts, File, Index
from clip_distill.photosearch.library import Library
from clip_distill.system.files import write_json

DIM, BATCH, FEW = 256, 256, 20_000


def rows(count: int, seed: int = 0) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """First number and vectors [B, 256] of each batch."""
    random = np.random.default_rng(seed)
    for start in range(0, count, 8192):
        block = random.standard_normal((min(8192, count - start), DIM), dtype=np.float32)
        yield start, block / np.linalg.norm(block, axis=1, keepdims=True)


class Sqlite:
    """SQLite with a blob a row, and a matrix in memory."""

    def __init__(self, folder: Path) -> None:
        self.index = Index(folder, {"student": "vectors", "dim": DIM})

    def add(self, first: int, block: np.ndarray[Any, Any]) -> None:
        files = (File(f"/photos/{first + place}.jpg", 1, 1) for place in range(len(block)))
        self.index.add((Facts(file, 0, 20260101, 1, 1), row) for file, row in zip(files, block, strict=True))

    def finish(self) -> None: ...

    def open(self) -> None:
        self.library = Library(self.index)

    def ask(self, vector: np.ndarray[Any, Any]) -> list[str]:
        return [answer.path for answer in self.library.search(vector, 100, fold=False)]

    def count(self) -> int:
        return self.index.count()


class SqliteVec:
    """sqlite-vec's virtual table, int8."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "vec.sqlite3"
        self.open()
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS photos USING vec0(v int8[{DIM}] distance_metric=cosine, +path text, "
            "+size integer, +modified integer)"
        )

    def add(self, first: int, block: np.ndarray[Any, Any]) -> None:
        small = np.rint(block * (127 / np.abs(block).max(1, keepdims=True))).astype(np.int8)
        with self.database:
            self.database.executemany(
                "INSERT INTO photos(rowid, v, path, size, modified) VALUES (?, vec_int8(?), ?, 1, 1)",
                [(first + place + 1, row.tobytes(), f"/photos/{first + place}.jpg") for place, row in enumerate(small)],
            )

    def finish(self) -> None:
        self.database.close()

    def open(self) -> None:
        import pysqlite3
        import sqlite_vec

        self.database = pysqlite3.connect(self.file)
        self.database.enable_load_extension(True)
        sqlite_vec.load(self.database)

    def ask(self, vector: np.ndarray[Any, Any]) -> list[str]:
        small = np.rint(vector * (127 / np.abs(vector).max())).astype(np.int8).tobytes()
        question = "SELECT path FROM photos WHERE v MATCH vec_int8(?) AND k = 100"
        return [row[0] for row in self.database.execute(question, (small,))]

    def count(self) -> int:
        return int(self.database.execute("SELECT count(*) FROM photos").fetchone()[0])


class Usearch:
    """usearch's HNSW graph in a file, and SQLite for the paths."""

    def __init__(self, folder: Path) -> None:
        from usearch.index import Index as Graph

        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.graph = folder / "graph.usearch", Graph(ndim=DIM, metric="cos", dtype="i8")
        self.database = sqlite3.connect(folder / "paths.sqlite3", check_same_thread=False)
        self.database.execute("CREATE TABLE IF NOT EXISTS photos (id INTEGER PRIMARY KEY, path TEXT, size, modified)")
        if self.file.is_file():
            self.graph.load(str(self.file))

    def add(self, first: int, block: np.ndarray[Any, Any]) -> None:
        numbers = np.arange(first, first + len(block), dtype=np.uint64)
        self.graph.add(numbers, block)
        self.graph.save(str(self.file)) if len(block) <= BATCH else None
        with self.database:
            named = [(int(number), f"/photos/{number}.jpg") for number in numbers]
            self.database.executemany("INSERT OR REPLACE INTO photos VALUES (?, ?, 1, 1)", named)

    def finish(self) -> None:
        self.graph.save(str(self.file))
        self.graph.reset()

    def open(self) -> None:
        self.graph.load(str(self.file))

    def ask(self, vector: np.ndarray[Any, Any]) -> list[str]:
        numbers = [int(number) for number in self.graph.search(vector, 100).keys]
        marks = ",".join("?" * len(numbers))
        return [row[0] for row in self.database.execute(f"SELECT path FROM photos WHERE id IN ({marks})", numbers)]

    def count(self) -> int:
        return min(len(self.graph), self.database.execute("SELECT count(*) FROM photos").fetchone()[0])


class Lance:
    """LanceDB's table, searched flat."""

    def __init__(self, folder: Path) -> None:
        import lancedb

        self.database = lancedb.connect(str(folder))
        self.table: Any = None
        if "photos" in str(self.database.list_tables()):
            self.open()

    def add(self, first: int, block: np.ndarray[Any, Any]) -> None:
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.astype(np.float16).ravel()), DIM)
        paths = [f"/photos/{first + place}.jpg" for place in range(len(block))]
        ones = pa.array(np.ones(len(block), np.int64))
        data = pa.table({"vector": vectors, "path": paths, "size": ones, "modified": ones})
        if self.table is None:
            self.table = self.database.create_table("photos", data)
        else:
            self.table.add(data)

    def finish(self) -> None: ...

    def open(self) -> None:
        self.table = self.database.open_table("photos")

    def ask(self, vector: np.ndarray[Any, Any]) -> list[str]:
        found = self.table.search(vector.astype(np.float16)).distance_type("cosine").limit(100).select(["path"])
        return found.to_arrow().column("path").to_pylist()

    def count(self) -> int:
        return int(self.table.count_rows()) if self.table is not None else 0


WAYS: dict[str, Callable[[Path], Any]] = {
    "sqlite": Sqlite,
    "sqlite-vec": SqliteVec,
    "usearch": Usearch,
    "lancedb": Lance,
}


def measured(way: str, count: int, folder: Path) -> dict[str, Any]:
    """Seconds to build and open, megabytes, milliseconds of a question, and how many of the nearest 100 are right."""
    store = WAYS[way](folder)
    began = time.perf_counter()
    for first, block in rows(count):
        store.add(first, block)
        last = block
    store.finish()
    building = time.perf_counter() - began
    began = time.perf_counter()
    store.open()
    store.ask(last[0])
    opening = time.perf_counter() - began
    questions = next(block for _, block in rows(20, seed=1))
    seconds, found = [], []
    for question in questions:
        began = time.perf_counter()
        found.append(store.ask(question))
        seconds.append(time.perf_counter() - began)
    best: list[Any] = [[] for _ in questions]
    for first, block in rows(count):
        scores = questions @ block.T
        for place, each in enumerate(scores):
            best[place] += [(float(each[row]), first + int(row)) for row in np.argsort(-each)[:100]]
    right = [{f"/photos/{number}.jpg" for _, number in sorted(each, reverse=True)[:100]} for each in best]
    share = statistics.mean(len(set(a) & b) / 100 for a, b in zip(found, right, strict=True))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"way": way, "photos": count, "build_s": building, "open_s": opening, "mb": size / 1e6} | {
        "question_ms": 1000 * statistics.median(seconds), "right": 100 * share,
    }  # fmt: skip


def killed(way: str, folder: Path) -> dict[str, int]:
    """What a writer said was kept before it was killed, and what is there afterwards."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--write", way, "--folder", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said, end = 0, time.monotonic() + 8
    while time.monotonic() < end and (line := process.stdout.readline()):
        said = int(line)
        if said >= 40 * BATCH:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    check = [sys.executable, __file__, "--count", way, "--folder", str(folder)]
    done = subprocess.run(check, capture_output=True, text=True)
    return {"said": said, "there": int(done.stdout) if done.returncode == 0 else -1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", default="results/vectors", help="file's name, without its ending")
    parser.add_argument("--write", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--count", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        print(WAYS[given.count](Path(given.folder)).count())
    elif given.write:
        store = WAYS[given.write](Path(given.folder))
        for first in range(0, FEW, BATCH):
            store.add(first, next(rows(BATCH, seed=first))[1])
            print(first + BATCH, flush=True)
        time.sleep(60)
    else:
        results: dict[str, Any] = {"measured": [], "killed": {}}
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
            for way in given.ways:
                results["killed"][way] = killed(way, Path(place) / f"killed-{way}")
                print(way, results["killed"][way], flush=True)
                for count in given.sizes:
                    results["measured"].append(measured(way, count, Path(place) / f"{way}-{count}"))
                    print(results["measured"][-1], flush=True)
        write_json(Path(given.out).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
