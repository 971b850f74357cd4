"""Bring an index up to date with its folders: new, changed, moved and deleted photos, a batch at a time.

Shapes: B batch, S image side, D embedding.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime

from PIL import ExifTags, Image

from clip_distill.corpus.files import images_of
from clip_distill.corpus.report import Skips
from clip_distill.model.encoder import Encoder, Pixels
from clip_distill.model.model import unit
from clip_distill.photosearch.index import Facts, File, Floats, Index
from clip_distill.pixels.photos import BadImage, Photo, digest_of, read_bytes_of
from clip_distill.pixels.plain import Resized, plain_view, to_array
from clip_distill.system.cores import cores
from clip_distill.system.errors import NotFound
from clip_distill.system.paths import is_folder
from clip_distill.system.talk import progress

BATCH = 16  # photos of a forward pass
KEEP = 256  # photos of a transaction
UNSEEN = ("missing file", "no permission")  # reasons that tell nothing of a photo: each update tries it again


@dataclass
class Progress:
    """How far an update is; read by the page while it goes on.

    Args:
        total: Files to read.
        done: Of them, those that are finished.
        running: Whether it goes on.
        added: New or changed photos.
        moved: Photos under another path.
        removed: Files that are gone.
        began: `time.monotonic()` of the first file.
        skips: What the folders hold besides photos.
        error: Why it stopped.
    """

    total: int = 0
    done: int = 0
    running: bool = False
    added: int = 0
    moved: int = 0
    removed: int = 0
    began: float = 0.0
    skips: Skips = field(default_factory=Skips)
    error: str | None = None

    def rate(self) -> float:
        """Files a second."""
        return self.done / max(time.monotonic() - self.began, 1e-9) if self.done else 0.0

    def left(self) -> float | None:
        """Seconds to go; None where nothing says so yet."""
        return (self.total - self.done) / rate if (rate := self.rate()) else None

    def line(self) -> str:
        return f"{self.added:,} photos added, {self.moved:,} moved, {self.removed:,} removed"


def found_files(folders: Sequence[str], skips: Skips) -> dict[str, File]:
    """Path → every photo in the folders, and in folders within them.

    Raises:
        NotFound: A folder is not there: nothing is taken for deleted because a disk is not mounted.
    """
    found: dict[str, File] = {}
    for folder in folders:
        if not is_folder(folder):
            raise NotFound(f"{folder}: expected a folder of photos, found none there")
        for _, path, _, _ in images_of(os.path.abspath(folder), True, skips):
            try:
                state = os.stat(path)
            except OSError:  # gone since
                continue
            found[path] = File(path, state.st_size, state.st_mtime_ns)
    return found


def require_photos(folders: Sequence[str], there: Iterable[str], known: Iterable[str]) -> None:
    """An empty folder may be where a disk is mounted at other times: its photos are not forgotten.

    Raises:
        NotFound: The index has photos of a folder that holds none now.
    """
    for folder in folders:
        inside = os.path.join(os.path.abspath(folder), "")
        before = sum(path.startswith(inside) for path in known)
        if before and not any(path.startswith(inside) for path in there):
            raise NotFound(
                f"{folder}: expected photos, since the index has {before:,} of it, found none. Is its disk mounted? If "
                "they are gone for good, delete the index, or leave the folder out"
            )


def update(
    index: Index,
    folders: Sequence[str],
    encoder: Encoder,
    state: Progress,
    stop: threading.Event | None = None,
    kept: Callable[[], None] = lambda: None,
    embed: Embedded | None = None,
) -> Progress:
    """Read what is new or changed, follow what was moved, forget what is gone.

    Args:
        index: What to bring up to date.
        folders: Where the photos lie.
        encoder: The image tower.
        state: Kept up to date meanwhile.
        stop: Ends it after the current batch, once set.
        kept: Called after each transaction that changed something.
        embed: What reads and embeds photos; by default this process.

    Raises:
        NotFound: A folder is not there, or empty where it was not.
    """
    state.running, state.began = True, time.monotonic()
    try:
        there, known = found_files(folders, state.skips), index.files()
        require_photos(folders, there, known)
        gone = {path for path in known if path not in there}
        wanted = [file for path, file in there.items() if path not in known or known[path][0] != file]
        sizes = {known[path][0].size for path in gone if known[path][1] is not None}
        suspects = [file for file in wanted if file.path not in known and file.size in sizes]
        moves = list(moved(suspects, {path: known[path] for path in gone}))
        index.move(moves)
        state.moved, gone = len(moves), gone - {old for old, _ in moves}
        done = {file.path for _, file in moves}
        wanted = [file for file in wanted if file.path not in done]
        state.total = len(wanted)
        index.remove(gone)
        state.removed = len(gone)
        if moves or gone:
            kept()
        with progress(total=len(wanted), desc="indexing", unit=" photos") as bar:
            for good, bad in (embed or embedded)(wanted, encoder) if wanted else ():
                index.add(good, [(each.file, each.reason) for each in bad])
                state.done += len(good) + len(bad)
                state.added += len(good)
                bar.update(len(good) + len(bad))
                kept()
                if stop is not None and stop.is_set():
                    break
    finally:
        state.running = False
    return state


def moved(suspects: Sequence[File], gone: dict[str, tuple[File, int | None]]) -> Iterator[tuple[str, File]]:
    """(old path, new file) pairs: files whose very bytes were known under a path that is gone."""
    by_content = {(file.size, digest): path for path, (file, digest) in gone.items() if digest is not None}
    for file in suspects:
        try:
            key = file.size, signed(digest_of(read_bytes_of(file.path)))
        except BadImage:
            continue
        if (old := by_content.pop(key, None)) is not None:
            yield old, file


@dataclass(frozen=True)
class Unread:
    """A file that can't be read, and why."""

    file: File
    reason: str


def read(file: File, view: Resized) -> tuple[Facts, Pixels] | Unread:
    """A photo's facts and pixels [S, S, 3], or why it can't be read."""
    try:
        content = read_bytes_of(file.path)
        photo = Photo(content)
        exif, (width, height) = photo.exif(), photo.upright().size  # before it is decoded, which closes it
        pixels = to_array(view(photo))
    except BadImage as error:
        # it may come back as it was, so it is remembered with a time that it never has
        return Unread(replace(file, modified=0) if error.reason in UNSEEN else file, error.reason)
    return Facts(file, signed(digest_of(content)), day_of(exif, file), width, height), pixels


def signed(digest: int) -> int:
    """64 bits as SQLite keeps them."""
    return digest - (1 << 64) if digest >= 1 << 63 else digest


def day_of(exif: Image.Exif, file: File) -> int:
    """When a photo was taken, as a number such as 20261129; of the file where its EXIF does not say.

    EXIF has the day where the photo was taken, a file's is that of this machine's time zone, as file managers show it.
    """
    text = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    try:
        taken = datetime.strptime(str(text)[:10], "%Y:%m:%d")
    except ValueError:
        taken = datetime.fromtimestamp(file.modified / 1e9)
    return taken.year * 10000 + taken.month * 100 + taken.day


Embedded = Callable[[Sequence[File], Encoder], Iterator[tuple[list[tuple[Facts, Floats]], list[Unread]]]]


def embedded(files: Sequence[File], encoder: Encoder) -> Iterator[tuple[list[tuple[Facts, Floats]], list[Unread]]]:
    """Batches of facts with vectors [D], and of what can't be read, in the order of the files.

    Each thread reads a batch and embeds it: by itself where the encoder can be called so, which keeps all cores at work
    without one waiting for another; else one at a time, while the others decode, outside of Python's lock.
    """
    view, twin = plain_view(encoder.preprocess), encoder.for_threads()
    runs, turn = (encoder, threading.Lock()) if twin is None else (twin, contextlib.nullcontext())

    def work(batch: Sequence[File]) -> tuple[list[tuple[Facts, Floats]], list[Unread]]:
        found = [read(file, view) for file in batch]
        pairs = [each for each in found if not isinstance(each, Unread)]
        bad = [each for each in found if isinstance(each, Unread)]
        if not pairs:
            return [], bad
        with turn:
            vectors = unit(runs.images([pixels for _, pixels in pairs], None))
        return [(facts, vector) for (facts, _), vector in zip(pairs, vectors, strict=True)], bad

    threads = cores() + (twin is None)
    batches = (files[start : start + BATCH] for start in range(0, len(files), BATCH))
    with ThreadPoolExecutor(threads) as pool:
        queue = deque(pool.submit(work, batch) for batch in itertools.islice(batches, 2 * threads))
        good: list[tuple[Facts, Floats]] = []
        bad: list[Unread] = []
        while queue:
            some, others = queue.popleft().result()
            queue.extend(pool.submit(work, batch) for batch in itertools.islice(batches, 1))
            good, bad = good + some, bad + others
            if len(good) + len(bad) >= KEEP or not queue:
                yield good, bad
                good, bad = [], []
