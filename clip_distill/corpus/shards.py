"""WebDataset shards: tar files whose consecutive members of one key (`000123.jpg`, `000123.txt`) are a sample.

Read by the standard library: a photo's place in the tar gives random access to it, without unpacking.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

from clip_distill.corpus.decoding import decoded
from clip_distill.corpus.report import Skips
from clip_distill.corpus.shard_index import Member, members
from clip_distill.pixels.photos import IMAGE_EXTENSIONS
from clip_distill.system.errors import InvalidValue
from clip_distill.system.paths import base_name, open_binary

# webdataset's own rule: the key ends at the first dot of the base name
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
DOTTED = (
    "photo with dots in its name, which WebDataset takes for a sample's fields; name it a_b.jpg instead of a.b.jpg, or "
    "unpack the tar and give the folder"
)


def shard_images(path: str, skips: Skips) -> Iterator[tuple[str, str, int, int]]:
    """Each sample's photo as (id `shard.tar/key`, path, offset, size); the first one where a sample has several.

    Raises:
        ValueError: The file is not a whole tar.
    """
    shard = base_name(path)
    for key, fields in _samples(path, skips):
        photos = [member for extension, member in fields.items() if f".{extension}" in IMAGE_EXTENSIONS]
        if photos:
            yield f"{shard}/{key}", path, photos[0].offset, photos[0].size
        if not photos:
            dotted = next((each for each in fields if f".{each.rpartition('.')[2]}" in IMAGE_EXTENSIONS), None)
            if dotted is None:
                skips.add("sample without a photo (KEY.jpg, KEY.png, …)", f"{shard}/{key}")
            else:
                skips.add(DOTTED, f"{shard}/{key}.{dotted}")
        for _ in photos[1:]:
            skips.add("more than one photo in a sample", f"{shard}/{key}")


def shard_captions(path: str, skips: Skips) -> Iterator[tuple[object, str]]:
    """Each sample's caption as (caption, id `shard.tar/key`): its `.txt`, else the "caption" of its `.json`.

    Raises:
        ValueError: The file is not a whole tar.
    """
    shard = base_name(path)
    with open_binary(path) as file:
        for key, fields in _samples(path, skips):
            kind = next((kind for kind in ("txt", "json") if kind in fields), None)
            if kind is None:
                continue
            sample = f"{shard}/{key}"
            file.seek(fields[kind].offset)
            content = file.read(fields[kind].size)
            try:
                text = decoded(content, sample)
                yield text if kind == "txt" else json.loads(text)["caption"], sample
            except InvalidValue:
                skips.add("caption is not UTF-8", sample)
            except (json.JSONDecodeError, RecursionError, KeyError, TypeError):
                skips.add('.json without a "caption"', sample)


def _samples(path: str, skips: Skips) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, lower-case extension → member) of each sample, in the order of the tar; the first one under each name."""
    seen: set[str] = set()
    names = ((NAME.fullmatch(member.name.removeprefix("./")), member) for member in members(path))
    found = ((match[1], match[2].lower(), member) for match, member in names if match)
    for key, group in itertools.groupby(found, key=lambda item: item[0]):
        fields: dict[str, Member] = {}
        for _, extension, member in group:
            if fields.setdefault(extension, member) is not member:
                skips.add("second file of one name in a tar", f"{base_name(path)}/{member.name}")
        if key in seen:
            for _ in fields:
                skips.add("key that another sample of the tar has", f"{base_name(path)}/{key}")
            continue
        seen.add(key)
        yield key, fields
