"""WebDataset shards: tar files whose consecutive members of one key (`000123.jpg`, `000123.txt`) are a sample.

Read by the standard library: a photo's place in the tar gives random access to it, without unpacking.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator

from clip_distill.data.images import IMAGE_EXTENSIONS
from clip_distill.data.paths import base_name, open_binary
from clip_distill.data.report import Skips

# webdataset's own rule: the key ends at the first dot of the base name
MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


def shard_images(path: str, skips: Skips) -> Iterator[tuple[str, str, int, int]]:
    """Each sample's photo as (id `shard.tar/key`, path, offset, size); the first one where a sample has several.

    Raises:
        ValueError: The file is not a whole tar.
    """
    shard = base_name(path)
    for key, fields, _ in _samples(path):
        photos = [member for extension, member in fields.items() if f".{extension}" in IMAGE_EXTENSIONS]
        if photos:
            yield f"{shard}/{key}", path, photos[0].offset_data, photos[0].size
        if not photos:
            skips.add("sample without a photo (KEY.jpg, KEY.png, …)", f"{shard}/{key}")
        for _ in photos[1:]:
            skips.add("more than one photo in a sample", f"{shard}/{key}")


def shard_captions(path: str, skips: Skips) -> Iterator[tuple[object, str]]:
    """Each sample's caption as (caption, id `shard.tar/key`): its `.txt`, else the "caption" of its `.json`.

    Raises:
        ValueError: The file is not a whole tar.
    """
    shard = base_name(path)
    for key, fields, read in _samples(path):
        sample = f"{shard}/{key}"
        try:
            if "txt" in fields:
                yield read(fields["txt"]).decode("utf-8"), sample
            elif "json" in fields:
                yield json.loads(read(fields["json"]))["caption"], sample
        except UnicodeDecodeError:
            skips.add("caption is not UTF-8", sample)
        except (json.JSONDecodeError, KeyError, TypeError):
            skips.add('.json without a "caption"', sample)


def _samples(path: str) -> Iterator[tuple[str, dict[str, tarfile.TarInfo], Callable[[tarfile.TarInfo], bytes]]]:
    """(key, extension → member, function that reads a member) of each sample, in the order of the tar."""
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:

            def read(member: tarfile.TarInfo) -> bytes:
                content = tar.extractfile(member)
                return content.read() if content is not None else b""

            for key, group in itertools.groupby(_members(tar), key=lambda item: item[0]):
                yield key, {extension: member for _, extension, member in group}, read
    except tarfile.TarError as error:
        raise ValueError(
            f"{path}: expected a whole, uncompressed tar file, found: {error}. Fetch the shard again, or leave it out."
        ) from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, lower-case extension, member) of each file in the tar."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else a long tar is kept in memory whole
        match = MEMBER.fullmatch(member.name.removeprefix("./"))
        if match and member.isreg() and not member.issparse():
            yield match[1], match[2].lower(), member
