"""Find photos and captions, with ids that are the same wherever the data lies.

The documented folder D:

    D/image/                                        training photos, flat (D/images/ is read, too)
    D/COCO/annotations/captions_train2017.json      training captions, COCO format
    D/CC/Train_GCC-training.tsv                     training captions, Conceptual Captions: caption, tab, URL
    D/COCO/val2017/                                 validation photos
    D/COCO/annotations/captions_val2017.json        validation captions, COCO format

Any part may be absent until it is asked for, and any part may come from elsewhere (`Sources`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clip_distill.corpus.captions import FORMATS, read_captions
from clip_distill.corpus.files import holds_captions, holds_photos, images_of, opened
from clip_distill.corpus.pairs import find_photos
from clip_distill.corpus.report import Report, Skips, SplitReport
from clip_distill.pixels.photos import IMAGE_EXTENSIONS
from clip_distill.system import paths
from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.system.talk import progress

DEFAULTS = {
    "train_images": ("image", "images"),
    "val_images": ("COCO/val2017",),
    "train_captions": ("COCO/annotations/captions_train2017.json", "CC/Train_GCC-training.tsv"),
    "val_captions": ("COCO/annotations/captions_val2017.json",),
}
IMAGES_SCHEMA = pa.schema(
    {"id": pa.large_string(), "path": pa.large_string(), "offset": pa.int64(), "size": pa.int64()}
)
ROWS_SCHEMA = pa.schema({"text": pa.large_string(), "name": pa.large_string()})
CHUNK = 65536  # rows held as Python objects at a time


@dataclass(frozen=True)
class Sources:
    """Parts of the data that lie elsewhere than in the documented folder; each replaces its part of it.

    One path or a list, local or fsspec URLs (`s3://…`), with shell-style patterns and ranges: `cc/{000..010}.tar`.

    Args:
        train_images: Folders of training photos, photos, WebDataset .tar shards, .parquet or .arrow tables that hold
            photos, or folders of such tables (a dataset saved by Hugging Face's datasets).
        val_images: The same for validation.
        train_captions: Files of training captions: COCO .json, .tsv, .csv, .txt (a caption a line), .jsonl, .parquet,
            .arrow, or WebDataset .tar shards with .txt or .json members. Not given, and no data folder either: the
            captions in the shards and tables of train_images.
        val_captions: The same for validation.
        recursive: Read folders inside folders of photos, too.
        caption_column: Name of a table's caption column, or its number from 1; found by itself if it is called
            caption, text or title, or is the first of a TSV without header.
        image_column: Name or number of the column with the photo's file name; found by itself if it is called image,
            file_name, filepath, path or image_path. Captions without one belong to no photo.
    """

    train_images: list[str] | str | None = None
    val_images: list[str] | str | None = None
    train_captions: list[str] | str | None = None
    val_captions: list[str] | str | None = None
    recursive: bool = False
    caption_column: str | None = None
    image_column: str | None = None


@dataclass(frozen=True)
class Split:
    """The photos and captions of one split.

    Args:
        images: Sorted by id: `id`, `path`, and for a photo in a tar `offset` and `size` in bytes, else -1 and -1.
            An id is the path from the source's own folder on: `image/a.jpg`, `val2017/a.jpg`, `shard-000.tar/000123`.
        captions: In the order of their files: `text`, and `image_id`, null where no photo of this split belongs to it.
        images_sought: Where photos were looked for; used in errors.
        captions_sought: Where captions were looked for.
    """

    images: pa.Table
    captions: pa.Table
    images_sought: str
    captions_sought: str

    @property
    def alone(self) -> bool:
        """Whether there are not both, photos and captions: a student can't be measured by what it finds."""
        return not (self.images.num_rows and self.captions.num_rows)

    def require_images(self) -> pa.Table:
        """The photos, of which there is at least one.

        Raises:
            FileNotFoundError: There are none; the message says where they were looked for.
        """
        if not self.images.num_rows:
            raise NotFound(f"expected photos ({', '.join(sorted(IMAGE_EXTENSIONS))}), found none: {self.images_sought}")
        return self.images

    def require_captions(self) -> pa.Table:
        """The captions, of which there is at least one.

        Raises:
            FileNotFoundError: There are none; the message says where they were looked for.
        """
        if not self.captions.num_rows:
            raise NotFound(f"expected captions ({', '.join(FORMATS)}), found none: {self.captions_sought}")
        return self.captions


@dataclass(frozen=True)
class Corpus:
    """All photos and captions, and what was left out of them."""

    train: Split
    val: Split
    report: Report = field(default_factory=Report)


def scan(data: str | None, sources: Sources = Sources()) -> Corpus:
    """Find all photos and captions of a data folder; no photo is opened.

    A part of the documented folder that is absent is in the report, and an error once a split must `require_…` it.

    Args:
        data: A folder laid out as documented above, or None where `sources` give all that is needed.
        sources: What lies elsewhere.

    Raises:
        FileNotFoundError: `data` or something that `sources` name does not exist.
        ValueError: A caption file or shard is broken, or two photos have one id.
    """
    require_folder(data)
    report = Report()
    return Corpus(
        _scan_split(data, sources, "train", report.train), _scan_split(data, sources, "val", report.val), report
    )


def require_folder(data: str | None) -> None:
    """Raise where a data folder is named that is not there.

    Raises:
        NotFound: It is not.
    """
    if data is not None and not paths.is_folder(data):
        raise NotFound(
            f"--data {data}: expected a folder, found {'a file' if paths.is_file(data) else 'nothing there'}"
        )


def _scan_split(data: str | None, sources: Sources, split: str, report: SplitReport) -> Split:
    image_sources, images_sought = _locate(data, sources, f"{split}_images", report)
    caption_files, captions_sought = _locate(data, sources, f"{split}_captions", report)
    if data is None and getattr(sources, f"{split}_captions") is None:
        caption_files = [path for path in image_sources if holds_captions(path, sources.caption_column)]
    images = _image_table(image_sources, sources.recursive, report)
    captions = _caption_table(caption_files, sources, images.column("id"), report)
    return Split(
        images,
        captions,
        f"{images_sought}{_summary(report.skipped_files)}",
        f"{captions_sought}{_summary(report.skipped_captions)}",
    )


def _summary(skips: Skips) -> str:
    return "".join("\n" + line for line in skips.lines())


def _locate(data: str | None, sources: Sources, part: str, report: SplitReport) -> tuple[list[str], str]:
    """Where a part of the data lies, and what to say when nothing is found there."""
    given: list[str] | str | None = getattr(sources, part)
    if given is not None:
        patterns = [given] if isinstance(given, str) else given
        found = [file for pattern in patterns for path in paths.expand(pattern) for file in opened(path)]
        sought = f"looked in {', '.join(patterns) or 'no place'} (--sources.{part})"
    elif data is not None:
        places = [paths.join(data, name) for name in DEFAULTS[part]]
        found = [path for path in places if paths.is_folder(path) or paths.is_file(path)]
        sought = f"looked in {' and '.join(places)}; if they lie elsewhere, pass --sources.{part}"
        if part == "train_images" and not found and holds_photos(data):
            sought = f"looked in {' and '.join(places)}; {data} itself holds photos: pass --sources.{part} {data}"
        if part == "train_images" and not found:
            report.missing.append(" or ".join(places))
        elif part != "train_images":
            report.missing += [path for path in places if path not in found]
    else:
        found, sought = [], f"pass --data or --sources.{part}"
    once: dict[str, str] = {}
    for path in found:
        once.setdefault(paths.real_path(path), path)
    if part.endswith("_images") and len(once) > 1:
        report.notes.append(f"photos from {len(once)} places: {', '.join(itertools.islice(once.values(), 3))}…")
    return list(once.values()), sought


def _image_table(sources: list[str], recursive: bool, report: SplitReport) -> pa.Table:
    """All photos, sorted by id.

    Raises:
        ValueError: Two photos have one id.
    """
    found = itertools.chain.from_iterable(images_of(source, recursive, report.skipped_files) for source in sources)
    table = _to_table(progress(found, "finding photos", unit=" photos", leave=False), IMAGES_SCHEMA)
    table = table.sort_by("id").combine_chunks()
    ids = table.column("id")
    same = pc.index(pc.equal(ids[1:], ids[:-1]), True).as_py() if len(ids) > 1 else -1
    if same >= 0:
        first, second = table.slice(same, 2).column("path").to_pylist()
        raise InvalidValue(
            f"two photos have one id, {ids[same].as_py()!r}: {first} and {second}. An id is the path from the source's "
            "own folder on, so give folders and shards different names, and each file one spelling"
        )
    report.images = table.num_rows
    return table


def _caption_table(files: list[str], sources: Sources, ids: pa.ChunkedArray, report: SplitReport) -> pa.Table:
    """All captions with the ids of their photos; counts them into the report."""
    columns, skips = (sources.caption_column, sources.image_column), report.skipped_captions
    rows = itertools.chain.from_iterable(read_captions(path, *columns, skips) for path in files)
    bar = progress(rows, "reading captions", unit=" captions", leave=False)
    table = _to_table(bar, ROWS_SCHEMA).combine_chunks()
    names = _one_array(table.column("name"))
    image_ids = find_photos(names, _one_array(ids))
    report.captions = table.num_rows
    report.duplicates = table.num_rows - pc.count_distinct(table.column("text")).as_py()
    report.captions_without_photo = image_ids.null_count - names.null_count
    if len(ids) and names.null_count < len(names) and image_ids.null_count == len(image_ids):
        name, id = names.drop_null()[0].as_py(), ids[0].as_py()
        report.notes.append(f"no caption belongs to a photo here: captions name {name!r}, …, photos are {id!r}, …")
    report.photos_without_captions = len(ids) - pc.count_distinct(image_ids, mode="only_valid").as_py()
    return pa.table({"text": table.column("text"), "image_id": image_ids})


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _to_table(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """A table of rows that come one by one, of which few are held as Python objects at a time."""
    source = iter(rows)
    batches = []
    while chunk := list(itertools.islice(source, CHUNK)):
        columns = [
            pa.array(list(values), kind) for values, kind in zip(zip(*chunk, strict=True), schema.types, strict=True)
        ]
        batches.append(pa.record_batch(columns, schema=schema))
    return pa.Table.from_batches(batches, schema)
