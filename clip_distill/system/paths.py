"""Where data lies: local paths, and `scheme://` URLs through fsspec. Both look the same to the rest of the package."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

import fsspec
from fsspec.core import url_to_fs

from clip_distill.system.errors import NotFound

WEB = {"http", "https"}
BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")


class Entry(NamedTuple):
    """One name in a folder; `kind` is "file", "folder" or "other" (a broken link, a socket)."""

    name: str
    path: str
    kind: str


def is_url(path: str) -> bool:
    return "://" in path


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def base_name(path: str) -> str:
    """The last part of a path or URL, without what lies above it; "." is the working folder's own name."""
    return path.rstrip("/").rsplit("/", 1)[-1] if is_url(path) else os.path.basename(os.path.abspath(path))


def suffix(path: str) -> str:
    """Lower-case extension with its dot, or an empty string."""
    return os.path.splitext(path)[1].lower()


def real_path(path: str) -> str:
    """One spelling for each place: equal for a folder and a link to it."""
    return path.rstrip("/") if is_url(path) else os.path.realpath(path)


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Errors of the other side's own client (no credentials, no server) as an OSError that names the URL."""
    try:
        yield
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:  # every client has its own
        raise ConnectionError(f"{url}: could not be reached: {error}") from error


def is_file(path: str) -> bool:
    return _is(path, "file") if is_url(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    return _is(path, "directory") if is_url(path) else os.path.isdir(path)


def _is(url: str, kind: str) -> bool:
    """Whether a file or a folder is there. fsspec's own `isfile` and `isdir` would take no answer for a no."""
    with reaching(url):
        system, inside = url_to_fs(url)
        if protocols(system) & WEB and kind == "directory":
            return bool(system.isdir(inside))  # a page with links
        try:
            return bool(system.info(inside)["type"] == kind)
        except FileNotFoundError:
            return False


def protocols(system: fsspec.AbstractFileSystem) -> set[str]:
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


def open_binary(path: str) -> IO[bytes]:
    with reaching(path):
        return cast("IO[bytes]", fsspec.open(path, "rb").open() if is_url(path) else open(path, "rb"))


def read_bytes(path: str, offset: int = -1, size: int = -1) -> bytes:
    """A whole file, or `size` bytes from `offset`; fewer where the file ends before. One range request on a remote."""
    if is_url(path):
        return _read_url(path, offset, size)
    with open(path, "rb") as file:
        if offset < 0:
            return file.read()
        file.seek(offset)
        return file.read(size)


def _read_url(url: str, offset: int, size: int) -> bytes:
    if size == 0:
        return b""  # no range is empty
    with reaching(url):
        system, inside = url_to_fs(url)
        if offset >= 0:
            return cast("bytes", system.cat_file(inside, start=offset, end=offset + size))
        try:
            return cast("bytes", system.cat_file(inside, start=0))  # s3fs asks for the size first, else
        except FileNotFoundError:
            raise
        except OSError:
            return cast("bytes", system.cat_file(inside))  # an empty file has no range


def entries(folder: str) -> Iterator[Entry]:
    """What lies directly in a folder, in no particular order. Links are followed."""
    if is_url(folder):
        with reaching(folder):
            system, inside = url_to_fs(folder)
            system.invalidate_cache(inside)  # what fsspec remembers of it may be old
            listed = system.ls(inside, detail=True)
        for info in listed:
            path = info["name"].rstrip("/")
            if path != inside.rstrip("/"):  # object stores list the folder's own marker, too
                kind = "folder" if info["type"] == "directory" else "file"
                yield Entry(path.rsplit("/", 1)[-1], system.unstrip_protocol(path), kind)
        return
    with os.scandir(folder) as found:
        for item in found:
            yield Entry(item.name, item.path, _kind(item))


def _kind(item: os.DirEntry[str]) -> str:
    try:
        return "folder" if item.is_dir() else "file" if item.is_file() else "other"
    except OSError:  # a link that leads back to itself
        return "other"


def listed_sizes(folder: str) -> dict[str, int]:
    """Name → bytes of the files in a folder behind a URL, from one listing rather than a request for each.

    Empty where the other side can't list, and without the files whose size it doesn't state: web servers do neither.
    """
    system, inside = url_to_fs(folder)
    if protocols(system) & WEB:
        return {}
    try:
        with reaching(folder):
            found = system.ls(inside, detail=True)  # as `entries` saw it, where fsspec remembers
    except OSError:
        return {}
    return {info["name"].rsplit("/", 1)[-1]: info["size"] for info in found if info.get("size") is not None}


def expand(pattern: str) -> list[str]:
    """The files and folders that a pattern means: a path or URL with a shell's `*`, `?`, `[…]`, `{a,b}`, `{000..010}`.

    Raises:
        FileNotFoundError: Nothing is there, for the pattern or for one of the names that its braces stand for.
    """
    found: list[str] = []
    for name in [pattern] if is_file(pattern) or is_folder(pattern) else expand_braces(pattern):
        matches = _glob(name)
        if not matches:
            meant = "" if name == pattern else f" (from {pattern})"
            raise NotFound(f"{name}{meant}: expected a file or a folder, found nothing there")
        found += matches
    return found


def expand_braces(pattern: str) -> list[str]:
    """`{000..010}` and `{a,b}` written out, as a shell does."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    inner = match[1]
    if "," in inner:
        items = inner.split(",")
    else:
        first, last = inner.split("..")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        items = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    return [name for item in items for name in expand_braces(pattern[: match.start()] + item + pattern[match.end() :])]


def _glob(name: str) -> list[str]:
    if is_file(name) or is_folder(name):
        return [name]
    if is_url(name):
        system, inside = url_to_fs(name)
        return sorted(system.unstrip_protocol(path) for path in system.glob(inside)) if glob.has_magic(inside) else []
    return sorted(glob.glob(name, recursive=True))
