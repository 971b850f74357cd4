"""The index on disk: SQLite keeps each photo's path, size, time and vector; killed at any moment it loses one batch.

Of four embedded ways measured by benchmarks/vectors.py, a matrix in memory read from SQLite answers soonest, and
exactly, for the price of a second to open 100,000 photos; and SQLite is a part of Python.
Shapes: N photos, D embedding.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip_distill.photosearch.database import COLUMNS, DAMAGED, SCHEMA, connected, not_kept
from clip_distill.system.errors import InvalidValue, NotWritten
from clip_distill.system.talk import say

Floats = NDArray[np.float32]
Kind = Literal["float16", "int8"]
FILE = "index.sqlite3"
PART = 4096  # rows that are read at a time


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is found.

    Args:
        path: Absolute.
        size: In bytes.
        modified: In nanoseconds since 1970.
    """

    path: str
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of a photo besides its vector.

    Args:
        file: Where it lies.
        digest: Of its bytes, 64 bits, signed as SQLite has them.
        taken: The day, as a number: 20261129; of its EXIF, else of the file.
        width: In pixels, as it is shown.
        height: In pixels.
    """

    file: File
    digest: int
    taken: int
    width: int
    height: int


@dataclass(frozen=True)
class Contents:
    """All photos of an index, in the order of their ids.

    Args:
        ids: int64 [N].
        paths: [N].
        taken: int64 [N] days.
        sizes: int64 [N, 2] widths and heights.
        matrix: float32 [N, D], of unit length.
    """

    ids: NDArray[np.int64]
    paths: list[str]
    taken: NDArray[np.int64]
    sizes: NDArray[np.int64]
    matrix: Floats


class Index:
    """One index; every method opens a connection of its own, so threads and processes may share it.

    Args:
        folder: Where its file lies; made where it is not there.
        made_by: What the vectors depend on: the student, D, and how photos are read.
        kind: Numbers of a vector on disk.

    Raises:
        InvalidValue: It was made by something else.
        NotWritten: It can't be kept there.
    """

    def __init__(self, folder: Path, made_by: dict[str, Any], kind: Kind = "float16") -> None:
        self.path, self.kind, self.dim = folder / FILE, kind, int(made_by["dim"])
        wanted = json.dumps(made_by | {"kind": kind}, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = self._begin(wanted)
        except NotWritten:
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # of its message, or of a table's name
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in DAMAGED:
                raise not_kept(folder, error) from error
            self._set_aside(error)
            found = self._begin(wanted)
        except OSError as error:
            raise not_kept(folder, error) from error
        if found != wanted:
            raise InvalidValue(f"{self.path}: expected an index made by {wanted}, found {found}. Name another --index")

    def _begin(self, wanted: str) -> str:
        """Make the tables where there are none; what the index was made by.

        Raises:
            DatabaseError: The file is cut, or changed where it can be noticed.
        """
        with self._connect() as database:
            database.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)
            database.execute("INSERT OR IGNORE INTO facts VALUES ('made_by', ?)", (wanted,))
            found = str(database.execute("SELECT value FROM facts WHERE key = 'made_by'").fetchone()[0])
            for columns in COLUMNS:
                database.execute(f"SELECT {columns} LIMIT 1")
            said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said == "ok" and found == wanted:
                odd = "SELECT count(*) FROM photos WHERE typeof(path) != 'text' OR length(vector) != ?"
                width = np.dtype(self.kind).itemsize * self.dim
                said = database.execute(odd, (width,)).fetchone()[0] or "ok"
        if said != "ok":
            raise sqlite3.DatabaseError(said)
        return found

    def _set_aside(self, error: Exception) -> None:
        """Put a damaged index out of the way: it can be made anew from the photos."""
        kept = self.path.with_suffix(".damaged")
        self.path.replace(kept)
        for rest in ("-wal", "-shm"):
            Path(f"{self.path}{rest}").unlink(missing_ok=True)
        say(f"{self.path}: the index is damaged ({error}): it lies in {kept.name}, and a new one is made of the photos")

    def _connect(self) -> AbstractContextManager[sqlite3.Connection]:
        return connected(self.path)

    def files(self) -> dict[str, tuple[File, int | None]]:
        """Path → what was indexed there and its digest; None for a file that could not be read."""
        with self._connect() as database:
            rows = database.execute("SELECT path, size, modified, digest FROM photos").fetchall()
            bad = database.execute("SELECT path, size, modified FROM unread").fetchall()
        found: dict[str, tuple[File, int | None]] = {path: (File(path, *rest), None) for path, *rest in bad}
        return found | {path: (File(path, size, time), digest) for path, size, time, digest in rows}

    def add(self, photos: Iterable[tuple[Facts, Floats]], unread: Iterable[tuple[File, str]] = ()) -> None:
        """Keep a batch, all of it or nothing; a path that is there is replaced, under the same id."""
        rows = [
            (f.file.path, f.file.size, f.file.modified, f.digest, f.taken, f.width, f.height, packed(vector, self.kind))
            for f, vector in photos
        ]
        bad = [(file.path, file.size, file.modified, reason) for file, reason in unread]
        with self._connect() as database:
            database.executemany(
                "DELETE FROM thumbs WHERE photo IN (SELECT id FROM photos WHERE path = ?)", [(row[0],) for row in rows]
            )
            database.executemany(
                "INSERT INTO photos (path, size, modified, digest, taken, width, height, vector) "
                "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (path) DO UPDATE SET size = excluded.size, "
                "modified = excluded.modified, digest = excluded.digest, taken = excluded.taken, "
                "width = excluded.width, height = excluded.height, vector = excluded.vector",
                rows,
            )
            database.executemany("DELETE FROM unread WHERE path = ?", [(row[0],) for row in rows])
            database.executemany("DELETE FROM photos WHERE path = ?", [(row[0],) for row in bad])
            database.executemany("INSERT OR REPLACE INTO unread VALUES (?,?,?,?)", bad)

    def map(self) -> Floats | None:
        """[D', D] from the model's numbers to fewer, where the index has one."""
        with self._connect() as database:
            row = database.execute("SELECT value FROM facts WHERE key = 'map'").fetchone()
        return np.frombuffer(row[0], np.float32).reshape(-1, self.dim) if row else None

    def keep_map(self, map: Floats) -> Floats:
        """Keep such a map, unless another process has kept one; the map that is kept."""
        with self._connect() as database:
            database.execute("INSERT OR IGNORE INTO facts VALUES ('map', ?)", (map.astype(np.float32).tobytes(),))
        kept = self.map()
        assert kept is not None
        return kept

    def move(self, moves: Iterable[tuple[str, File]]) -> None:
        """Give photos other paths: (old path, new file) pairs."""
        with self._connect() as database:
            database.executemany(
                "UPDATE photos SET path = ?, size = ?, modified = ? WHERE path = ?",
                [(file.path, file.size, file.modified, old) for old, file in moves],
            )

    def remove(self, paths: Iterable[str]) -> None:
        """Forget files, and their thumbnails."""
        gone = [(path,) for path in paths]
        with self._connect() as database:
            database.executemany("DELETE FROM thumbs WHERE photo IN (SELECT id FROM photos WHERE path = ?)", gone)
            database.executemany("DELETE FROM photos WHERE path = ?", gone)
            database.executemany("DELETE FROM unread WHERE path = ?", gone)

    def contents(self) -> Contents:
        """Everything that a search needs, in memory."""
        with self._connect() as database:
            database.execute("BEGIN")  # both questions see one state
            count = database.execute("SELECT count(*) FROM photos").fetchone()[0]
            found = database.execute("SELECT id, path, taken, width, height, vector FROM photos ORDER BY id")
            paths: list[str] = []
            facts, matrix = np.empty((count, 4), np.int64), np.empty((count, self.dim), np.float32)
            while some := found.fetchmany(PART):  # a million rows at once would take memory twice
                part = slice(len(paths), len(paths) + len(some))
                paths += [row[1] for row in some]
                facts[part] = [(row[0], row[2], row[3], row[4]) for row in some]
                numbers = np.frombuffer(b"".join(row[5] for row in some), self.kind).reshape(len(some), self.dim)
                matrix[part] = unpacked(numbers)
        return Contents(facts[:, 0], paths, facts[:, 1], facts[:, 2:], matrix)

    def path_of(self, photo: int) -> str | None:
        """Where a photo of the index lies."""
        with self._connect() as database:
            row = database.execute("SELECT path FROM photos WHERE id = ?", (photo,)).fetchone()
        return row[0] if row else None

    def thumb(self, photo: int) -> bytes | None:
        """A photo's thumbnail, where it was made."""
        with self._connect() as database:
            row = database.execute("SELECT image FROM thumbs WHERE photo = ?", (photo,)).fetchone()
        return row[0] if row else None

    def keep_thumb(self, photo: int, image: bytes) -> None:
        """Keep a photo's thumbnail."""
        with self._connect() as database:
            database.execute("INSERT OR REPLACE INTO thumbs VALUES (?, ?)", (photo, image))

    def unread(self) -> list[tuple[str, str]]:
        """(path, reason) of the files that could not be read."""
        with self._connect() as database:
            return database.execute("SELECT path, reason FROM unread ORDER BY path").fetchall()

    def count(self) -> int:
        """N."""
        with self._connect() as database:
            return int(database.execute("SELECT count(*) FROM photos").fetchone()[0])


def packed(vector: Floats, kind: Kind) -> bytes:
    """A vector [D] as bytes; int8 spreads its largest number to 127, since only directions count."""
    if kind == "int8":
        vector = np.rint(vector * (127 / max(float(np.abs(vector).max()), 1e-12)))
    return vector.astype(kind).tobytes()


def unpacked(numbers: NDArray[Any]) -> Floats:
    """float32 [N, D] of unit length."""
    matrix = numbers.astype(np.float32)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return matrix
