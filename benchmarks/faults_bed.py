"""What `faults.py` injects faults into: small data, teachers, and the commands with what must come out of them."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from faults_warm import Child, Warm

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = 400  # of the folder that is searched: more than one transaction of the index holds
WIDE = 150  # photos that are decoded to 224×224, so that a few batches fill 64 MB
LARGE = (4000, 3000)
NONE_WHOLE, HALF = 3, 4  # exit codes of `read`: a clear error; something half-written was taken for whole

Result = dict[str, Any]  # what must be equal in the end: names → digests, or vectors


@dataclass(frozen=True)
class Work:
    """A command.

    Args:
        name: For the table.
        argv: The place of its output → its words.
        result: The same place → what must be equal.
        again: Words that the second run takes besides.
    """

    name: str
    argv: Callable[[Path], list[object]]
    result: Callable[[Path], Result]
    again: tuple[str, ...] = ()


class Bed:
    """Data, teachers, a store and a student, each made once when it is asked for.

    Args:
        warm: Makes them.
        folder: Where they lie.
    """

    def __init__(self, warm: Warm, folder: Path) -> None:
        self.warm, self.folder, self._number = warm, folder, 0
        self._undisturbed: dict[str, tuple[Result, Child, float]] = {}
        succeed(warm.start("faults_bed:draw", folder=str(folder), name="data", count=24, image_size=32))
        self.teacher, self.data = f"local-dir:{folder}/teacher-data", folder / "data"

    @cached_property
    def photos(self) -> Path:
        """A folder to search."""
        succeed(self.warm.start("faults_bed:draw_photos", folder=str(self.folder / "photos")))
        return self.folder / "photos"

    @cached_property
    def wide(self) -> Path:
        """Photos for a teacher of 224×224, some of 12 megapixels."""
        arguments = {"folder": str(self.folder), "name": "wide", "count": WIDE, "image_size": 224, "large": 4}
        succeed(self.warm.start("faults_bed:draw", **arguments))
        return self.folder / "wide"

    @cached_property
    def store(self) -> Path:
        succeed(self.warm.verb(*self._embed(self.folder / "store")))
        return self.folder / "store"

    @cached_property
    def wide_store(self) -> Path:
        """Of photos of 224×224."""
        succeed(self.warm.verb(*self.embed_wide(self.folder / "wide-store", 0)))
        return self.folder / "wide-store"

    @cached_property
    def run(self) -> Path:
        """A trained text student."""
        succeed(self.warm.verb(*self.fit(self.folder / "run")))
        return self.folder / "run"

    def place(self) -> Path:
        """A folder for one trial's output."""
        self._number += 1
        folder = self.folder / "out" / f"{self._number:05d}"
        folder.mkdir(parents=True)
        return folder

    def _embed(self, out: Path) -> list[object]:
        what = ["--data", self.data, "--teacher", self.teacher, "--store", out, "--views", 2, "--augment", "crop_flip"]
        how = ["--shard_rows", 8, "--workers", 0, "--device", "cpu", "--dtype", "float32"]
        return ["embed", *what, *how]

    def embed_wide(self, out: Path, workers: int) -> list[object]:
        """Photos of 12 megapixels among others, decoded to 224×224."""
        what = ["--data", self.wide, "--teacher", f"local-dir:{self.folder}/teacher-wide", "--store", out]
        return ["embed", *what, "--workers", workers, "--device", "cpu", "--dtype", "float32"]

    def fit(self, out: Path, epochs: int = 3, *more: object) -> list[object]:
        student = "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}"
        what = ["fit", "--preset", "none", "--tower", "text", "--data", self.data, "--store", self.store, "--out", out]
        return [*what, "--student.options", student, "--loader.workers", 0, "--loader.batch_size", 8, *TRAINER,
                "--trainer.max_epochs", epochs, *more]  # fmt: skip

    def fit_wide(self, out: Path, workers: int) -> list[object]:
        """Of an image student of 224×224."""
        student = "{input_resolution: 224, patch_size: 56, width: 16, layers: 1, heads: 2}"
        what = ["fit", "--preset", "none", "--tower", "image", "--data", self.wide, "--store"]
        how = ["--student.name", "vit", "--student.options", student, "--loader.workers", workers]
        return [*what, self.wide_store, "--out", out, *how, "--loader.batch_size", 64, *TRAINER,
                "--trainer.max_epochs", 2]  # fmt: skip

    def export(self, out: Path) -> list[object]:
        return ["export", "--text_student", self.run, "--out", out / "exported", "--overwrite", "true"]

    def reduce(self, out: Path) -> list[object]:
        return ["store", "reduce", "--store", self.store, "--dim", 8, "--out", out]

    def search(self, out: Path) -> list[object]:
        return ["search", self.photos, "--teacher", self.teacher, "--index", out, "--index_only", "--device", "cpu"]

    @cached_property
    def works(self) -> dict[str, Work]:
        """Name → every command that writes something."""
        every = [
            Work("embed", self._embed, files),
            Work("fit", self.fit, trained, ("--resume=true",)),
            Work("export", self.export, files),
            Work("reduce", self.reduce, files),
            Work("search", self.search, indexed),
        ]
        return {work.name: work for work in every}

    def undisturbed(self, work: Work) -> tuple[Result, Child, float]:
        """What comes out of a command that nothing befalls, its process with its calls counted, and its seconds."""
        if work.name not in self._undisturbed:
            out = self.place()
            words = work.argv(out)  # what it needs is made before the clock starts
            began = time.monotonic()
            counted = {"calls": (str(out), 0, 0)} if self.warm.counts else {}
            child = succeed(self.warm.verb(*words, **counted))
            self._undisturbed[work.name] = work.result(out), child, time.monotonic() - began
        return self._undisturbed[work.name]

    def mended(self, work: Work, out: Path) -> str | None:
        """Run a disturbed command once more, undisturbed; what is wrong with what it leaves, and its folder's end."""
        child = self.warm.verb(*work.argv(out), *work.again).wait()
        if child.code != 0:
            return f"the same command again failed: {last_line(child)}"
        different = difference(self.undisturbed(work)[0], work.result(out))
        shutil.rmtree(out)
        return different and f"after the same command again: {different}"


TRAINER = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--report", "false"]
TRAINER += ["--trainer.log_every_n_steps", "1", "--seed", "4"]


def draw(folder: str, name: str, count: int, image_size: int, large: int = 0) -> None:
    """Make data of so many photos, and a teacher; in a process of the server."""
    sys.path.insert(0, str(ROOT))
    from PIL import Image

    from tests.conftest import draw_scene, draw_split, save_teacher

    root = Path(folder)
    save_teacher(root / f"teacher-{name}", custom_text=True, image_size=image_size)
    notes = root / name / "COCO/annotations"
    draw_split(root / name / "image", notes / "captions_train2017.json", range(0, count), captions=2)
    draw_split(root / name / "COCO/val2017", notes / "captions_val2017.json", range(count, count + 8), captions=3)
    for number in range(large):
        draw_scene(number).resize(LARGE, Image.Resampling.NEAREST).save(root / name / f"image/{number:012d}.jpg")


def draw_photos(folder: str) -> None:
    """Make the photos that are searched; in a process of the server."""
    sys.path.insert(0, str(ROOT))
    from tests.conftest import draw_scene

    Path(folder).mkdir()
    for number in range(PHOTOS):
        draw_scene(number).rotate(number, expand=True).save(f"{folder}/{number:04d}.jpg", quality=90)


def succeed(child: Child) -> Child:
    """
    Raises:
        RuntimeError: A command failed that nothing befell.
    """
    if child.wait().code != 0:
        raise RuntimeError(f"exit code {child.code} without any fault: {child.said[-3000:]}")
    return child


def last_line(child: Child) -> str:
    return f"exit code {child.code}, {' / '.join(child.said.strip().splitlines()[-3:])[-300:]} ({child.log})"


def files(out: Path) -> Result:
    """Name → digest of all but locks and what is written aside; a reduced store names its own place."""
    names = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return {str(name): hashlib.sha256((out / name).read_bytes().replace(bytes(out), b"")).hexdigest() for name in shown}


def trained(out: Path) -> Result:
    """The student alone: logs have times."""
    return files(out / "student")


def indexed(out: Path) -> Result:
    """Path → facts and unit vector of each photo."""
    with closing(sqlite3.connect(out / "index.sqlite3")) as database:
        (state,) = database.execute("PRAGMA integrity_check").fetchone()
        rows = database.execute("SELECT path, size, digest, taken, width, height, vector FROM photos").fetchall()
        unread = database.execute("SELECT path, reason FROM unread").fetchall()
    vectors = {path: np.frombuffer(vector, np.float16).astype(np.float32) for path, *_, vector in rows}
    vectors = {path: vector / np.linalg.norm(vector) for path, vector in vectors.items()}
    return {"state": state, "unread": unread, **{row[0]: (row[1:-1], vectors[row[0]]) for row in rows}}


def difference(expected: Result, found: Result) -> str | None:
    """The first thing that differs; vectors may by rounding, since a photo's batch is another after a kill."""
    for name in sorted(expected.keys() | found.keys()):
        one, other = expected.get(name), found.get(name)
        if isinstance(one, tuple) and isinstance(other, tuple):
            (facts, vector), (others, another) = one, other
            if facts == others and float(vector @ another) > 0.9999:
                continue
        elif one == other:
            continue
        return f"{name} differs, or is there once only"
    return None


def read(work: str, out: str) -> None:
    """Read what a killed command left, as programs do; in a process of the server, whose exit code says how it went."""
    from clip_distill.system.errors import Error

    readers = {"embed": whole_store, "reduce": whole_store, "fit": whole_run, "export": whole_export}
    try:
        readers.get(work, whole_index)(Path(out))
    except Error as error:
        print(error)
        raise SystemExit(NONE_WHOLE) from error
    except AssertionError as error:
        print(error)
        raise SystemExit(HALF) from error


def whole_store(place: Path) -> None:
    from clip_distill.store.manifest import MANIFEST
    from clip_distill.store.table import Store
    from clip_distill.store.verify import problems
    from clip_distill.system.errors import NotFound

    for manifest in place.rglob(MANIFEST):
        found = problems(Store(manifest.parent))
        assert not found, found
    if not any(place.rglob(MANIFEST)):
        raise NotFound(f"{place}: no table")


def whole_run(place: Path) -> None:
    import torch

    from clip_distill.towers.spec import load_tower

    for checkpoint in (place / "checkpoints").glob("*.ckpt"):
        torch.load(checkpoint, weights_only=True, map_location="cpu")
    load_tower(place)


def whole_export(place: Path) -> None:
    import clip_distill as cd

    assert np.isfinite(cd.load(place / "exported", device="cpu").encode_text(["a red circle"])).all()


def whole_index(place: Path) -> None:
    from clip_distill.system.errors import NotFound

    if not (place / "index.sqlite3").is_file():
        raise NotFound(f"{place}: no index")
    try:
        found = indexed(place)
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise NotFound(f"{place}: no photos yet") from error
        raise
    assert found["state"] == "ok", found["state"]
