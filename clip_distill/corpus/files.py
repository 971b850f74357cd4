"""What of the files that a source names is a photo, and where each photo lies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from clip_distill.corpus.captions import encodable, tidy_name
from clip_distill.corpus.columns import CAPTION_COLUMNS
from clip_distill.corpus.report import Skips
from clip_distill.corpus.shards import shard_images
from clip_distill.corpus.tables import TABLES, is_table, saved_dataset, schema_of, table_images
from clip_distill.pixels.photos import HEIF_EXTENSIONS, IMAGE_EXTENSIONS, RAW_EXTENSIONS
from clip_distill.system import paths
from clip_distill.system.errors import InvalidValue


def opened(path: str) -> list[str]:
    """A source's files: of a folder of tables, those; of anything else, itself.

    Raises:
        InvalidValue: It is a saved dataset of several splits.
    """
    if not paths.is_folder(path):
        return [path]
    if saved := saved_dataset(path):
        return saved
    files = [entry for entry in paths.entries(path) if entry.kind == "file" and not entry.name.startswith(".")]
    only_tables = bool(files) and all(paths.suffix(entry.name) == ".parquet" for entry in files)
    return sorted(entry.path for entry in files) if only_tables else [path]


def holds_photos(folder: str) -> bool:
    """Whether photos lie in a folder itself."""
    return any(paths.suffix(entry.name) in IMAGE_EXTENSIONS for entry in paths.entries(folder))


def holds_captions(path: str, column: str | None) -> bool:
    """Whether a source of photos brings captions along: a shard does, and a table that has such a column."""
    if not is_table(path):
        return paths.suffix(path) == ".tar" and not paths.is_folder(path)
    names = {name.strip().lower() for name in schema_of(path).names}
    return bool(names & {*CAPTION_COLUMNS, *([column.lower()] if column else [])})


def images_of(source: str, recursive: bool, skips: Skips) -> Iterator[tuple[str, str, int, int]]:
    """The photos of a folder, shard or table, or one photo, as (id, path, offset, size).

    Args:
        source: What `opened` gave.
        recursive: Read folders inside folders, too.
        skips: Counts what is left out.

    Raises:
        InvalidValue: It is something else.
    """
    if paths.suffix(source) == ".tar" and not paths.is_folder(source):
        rows: Iterable[tuple[str, str, int, int]] = shard_images(source, skips)
    elif is_table(source):
        rows = table_images(source, skips)
    elif paths.is_folder(source):
        rows = _walk(source, paths.base_name(source), recursive, skips, {paths.real_path(source)})
    elif paths.suffix(source) in IMAGE_EXTENSIONS:  # a photo by itself
        folder = paths.base_name(source.rsplit("/", 1)[0] if "/" in source else ".")
        rows = [(f"{folder}/{paths.base_name(source)}", source, -1, -1)]
    else:
        raise InvalidValue(
            f"{source}: expected a folder of photos, a photo, an uncompressed .tar shard or a table "
            f"({', '.join(TABLES)}), found another file: {_kind(source)}"
        )
    for name, path, offset, size in rows:
        if encodable(name) and encodable(path):
            yield tidy_name(name), path, offset, size
        else:
            skips.add("file name is not UTF-8", path)


def _walk(
    folder: str, prefix: str, recursive: bool, skips: Skips, seen: set[str]
) -> Iterator[tuple[str, str, int, int]]:
    """The photos in a folder. `seen` holds the folders that were read, for links that lead to one of them."""
    folders = []
    for name, path, kind in paths.entries(folder):
        if name.startswith("."):
            skips.add("hidden", path)
        elif kind == "folder" and not recursive:
            skips.add("folder inside a folder of photos; read with --sources.recursive true", path)
        elif kind == "folder":
            folders.append((name, path))
        elif paths.suffix(name) not in IMAGE_EXTENSIONS:
            skips.add(_kind(name), path)
        elif kind == "other":
            link = os.path.islink(path)
            skips.add("broken link" if link else "not a file, but a pipe, a socket or a device", path)
        else:
            yield f"{prefix}/{name}", path, -1, -1
    for name, path in sorted(folders):  # of a folder's two names, a disk's order would decide which one is in the ids
        if paths.real_path(path) in seen:
            skips.add("folder that was read already, under another name", path)
        else:
            seen.add(paths.real_path(path))
            yield from _walk(path, f"{prefix}/{name}", recursive, skips, seen)


def _kind(name: str) -> str:
    """Why a file is no photo, by its extension."""
    extension = paths.suffix(name)
    if extension in HEIF_EXTENSIONS:
        return "HEIC photo; pip install 'clip-distill[heif]' reads it"
    if extension in RAW_EXTENSIONS:
        return "RAW photo, which is not developed here; export it as JPEG"
    if extension in (".tar", *TABLES):
        return f"{extension} in a folder of photos; name it by itself: --sources.train_images '[FOLDER/*{extension}]'"
    return "not an image by its extension"
