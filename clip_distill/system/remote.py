"""Stores behind `s3://`, `gs://`, `hf://`, `memory://` …: anything that fsspec reaches.

Reading downloads a file when it is first asked for, into a cache on this machine that is keyed by the file's SHA-256:
a store that was rebuilt at the same address is never mixed up with the old one, and every download is checked.
Writing uploads a shard's files one by one, its `shard.json` last, so a shard without it is not there yet.
"""

from __future__ import annotations

import json
import uuid
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import cache_folder, read_json, sha256, write_json
from clip_distill.system.paths import is_file, is_url, reaching, read_bytes


class RemotePath:
    """The few things of `pathlib.Path` that a store asks for, of a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rsplit("/", 1)[0])

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        system, inside = url_to_fs(self.url)
        return system, inside

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}  # connections don't go to worker processes

    def is_file(self) -> bool:
        """Whether it is there now, as `glob` says.

        Raises:
            OSError: Nobody answers.
        """
        system, inside = self._place
        system.invalidate_cache(system._parent(inside))
        return is_file(self.url)

    def glob(self, pattern: str) -> list[RemotePath]:
        """What matches below this folder now: listings that fsspec has kept are dropped, other processes write, too."""
        with reaching(self.url):
            system, inside = self._place
            system.invalidate_cache()
            return [RemotePath(system.unstrip_protocol(path)) for path in sorted(system.glob(f"{inside}/{pattern}"))]

    def open(self, mode: str = "rb") -> IO[bytes]:
        with reaching(self.url):
            system, inside = self._place
            return cast("IO[bytes]", system.open(inside, mode))

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: It is not there.
        """
        return read_bytes(self.url)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Write the whole file; object stores show the old one until it is complete.

        Raises:
            FileNotFoundError: There is no such bucket.
        """
        with reaching(self.url):
            system, inside = self._place
            try:
                system.pipe_file(inside, bytes(content))
            except FileNotFoundError:
                # a folder is made where one is needed; a bucket, which s3fs would make, too, may be a typo
                if not system.exists(inside.strip("/").split("/")[0]):
                    raise
                system.makedirs(system._parent(inside), exist_ok=True)
                system.pipe_file(inside, bytes(content))


Location = Path | RemotePath


def locate(path: Location | str) -> Location:
    """A path on this machine, or a URL (`file://` is on this machine, too)."""
    if isinstance(path, RemotePath) or not is_url(str(path)):
        return path if isinstance(path, RemotePath) else Path(path)
    url = str(path)
    return Path(url_to_fs(url)[1]) if url.startswith(("file://", "local://")) else RemotePath(url)


def load_json(path: Location) -> Any:
    return read_json(path) if isinstance(path, Path) else json.loads(path.read_bytes())


def save_json(path: Location, value: Any) -> None:
    """Replace a JSON file in one step, safe from a power cut once this returns."""
    if isinstance(path, Path):
        write_json(path, value)
    else:
        path.write_bytes((json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def local_copy(path: Location, digest: str) -> Path:
    """The file itself if it is on this machine, else its copy in the cache, downloaded if it isn't there.

    Raises:
        ValueError: What came is not what the store's manifest says.
    """
    if isinstance(path, Path):
        return path
    copy = cache_folder() / digest[:2] / digest
    if copy.is_file():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    aside = copy.with_name(f".{digest}.{uuid.uuid4().hex}.tmp")  # several workers may want one file at a time
    try:
        with reaching(path.url):
            system, inside = path._place
            system.get_file(inside, str(aside))
        found = sha256(aside)
        if found != digest:
            raise InvalidValue(f"{path}: expected SHA-256 {digest}, found {found}. Run `clip-distill store verify`.")
        aside.replace(copy)
    finally:
        aside.unlink(missing_ok=True)
    return copy
