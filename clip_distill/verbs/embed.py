"""`clip-distill embed`: photos and captions through the teacher, once, into a store."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.system.arguments import Place, plain, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import LOGGER, say

if TYPE_CHECKING:
    import pyarrow as pa

    from clip_distill.corpus.layout import Corpus
    from clip_distill.corpus.parts import Split
    from clip_distill.store.build import EmbedParts
    from clip_distill.store.embed import Runner
    from clip_distill.store.manifest import Manifest
    from clip_distill.system.remote import Location
    from clip_distill.towers.spec import Tower

Part = Literal["train", "val", "prompts"]
PROMPTS = 240_000

READS = ("data",)  # places that must be there
EXAMPLES = """\
  # both towers, training and validation, from a folder in the documented layout
  clip-distill embed --data DATA --teacher ViT-B-32/openai --store stores/b32
  # a teacher of your own, four augmented views an image beside the plain one, on a GPU in half precision
  clip-distill embed --data DATA --teacher local-dir:my_clip --store stores/mine --tower image \\
    --views 5 --augment crop_flip --device cuda --precision fp16
  # captions from a parquet file, photos from WebDataset shards
  clip-distill embed --data DATA --teacher hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K --store stores/laion \\
    --sources.train_captions '[captions.parquet]' --sources.train_images '[shards/{000..099}.tar]'
  # no data at all: made-up texts of the teacher's own words, for a text student (fit --tower text --prompts 1)
  clip-distill embed --teacher ViT-B-32/openai --store stores/words --prompts vocabulary
  # by all workers of a Ray cluster
  clip-distill embed --data DATA --teacher ViT-B-32/openai --store stores/b32 --engine ray --address auto
  # N processes, on one machine or many with one file system or bucket (docs/clusters.md)
  torchrun --nproc-per-node N --max-restarts 3 -m clip_distill embed …
  # data and store in a bucket (pip install 'clip-distill[s3]'; AWS_ENDPOINT_URL names servers other than AWS)
  clip-distill embed --data s3://bucket/data --teacher ViT-B-32/openai --store s3://bucket/store

Running the same command again continues where it stopped, and adds what is new: photos
(also those that could not be read before), captions, --views."""


def embed(
    data: Place | None = None,
    *,
    teacher: str | type[Any],
    store: Place,
    tower: Literal["image", "text", "both"] = "both",
    split: Literal["train", "val", "both"] = "both",
    views: int = 1,
    augment: str = "none",
    seed: int = 0,
    exif: bool = False,
    batch_size: int = 64,
    workers: int = 1,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    dtype: Literal["float16", "float32"] = "float16",
    shard_rows: int = 8192,
    prompts: Literal["none", "vocabulary"] = "none",
    prompts_count: int = PROMPTS,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> None:
    """Run the teacher once over photos and captions, and store its embeddings; training then never loads it.

    Args:
        data: Folder in the documented layout (image/, COCO/val2017/, COCO/annotations/, CC/).
        teacher: ViT-B-32/openai, local-dir:PATH, hf-hub:ORG/REPO, transformers:PATH_OR_NAME, or module:Attr.
        store: Folder to write, or a URL (s3://…); it gets one table per tower and split.
        tower: Which of the teacher's towers to run; only one is in memory at a time.
        split: Which part of the data; validation always gets one plain view.
        views: Views per training image: one plain, the others augmented. A larger number adds views to a store.
        augment: How views 1 and up are made: crop_flip, crop_flip_color, randaugment, original, or module:Attr.
        seed: Of the augmented views.
        exif: Turn photos as their EXIF orientation says, as upright:TEACHER does; by default they are left as the
            teacher's own pipeline leaves them. Students of such a store turn photos, too.
        batch_size: Views or captions per forward pass.
        workers: Processes that decode images.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: What the teacher computes in.
        dtype: What is stored.
        shard_rows: Images or captions per shard; a kill loses one shard at most.
        prompts: vocabulary makes texts that need no data, into a table of their own for fit --prompts: every whole word
            of the teacher's tokenizer in two templates, and phrases and sentences made up of these words.
        prompts_count: How many phrases and sentences.
        sources: Other places for parts of the data.
        engine: ray shares the shards among the workers of a Ray cluster, which see the same data and the same store.
        address: Of the cluster: auto for the one that this machine belongs to; by default one of this machine alone.

    Raises:
        Error: Data or teacher are not there, or the store holds something else.

    Example:
        >>> cd.embed(data=DATA, teacher=TEACHER, store=STORE, tower="text", split="val")
    """
    options = locals()
    _require_views(views, augment)
    if engine == "ray":
        return _over_ray(options | {"engine": "local", "address": None}, address)
    import pyarrow as pa

    from clip_distill.corpus.layout import scan
    from clip_distill.corpus.parts import items_of
    from clip_distill.store.embed import Runner
    from clip_distill.store.manifest import Manifest
    from clip_distill.store.table import table_folder
    from clip_distill.teachers import load_teacher
    from clip_distill.teachers.upright import PREFIX
    from clip_distill.tokens.prompts import vocabulary_prompts
    from clip_distill.tokens.spec import TokenizerSpec
    from clip_distill.towers.spec import pick_device

    name = PREFIX + plain(teacher) if exif else plain(teacher)
    corpus = scan(spelt(data), sources)
    alone = prompts != "none" and data is None and sources == Sources()
    found = [] if alone else _tables(corpus, tower, split)
    found += [("text", "prompts")] if prompts != "none" else []
    for each in dict.fromkeys(tower for tower, _ in found):
        spec, module = load_teacher(name, each)
        runner = Runner(spec, module, pick_device(device), precision, batch_size, workers)
        for part in (part for tower, part in found if tower == each):
            augmented = part == "train" and each == "image" and views > 1
            drawn = (views, augment, seed) if augmented else (1, "none", 0)
            made_by = Manifest(each, part, spec.teacher, *drawn, dtype, precision)
            if part == "prompts":
                items = pa.table({"id": vocabulary_prompts(TokenizerSpec(**spec.tokenizer), prompts_count, seed)})
            else:
                items = items_of(corpus, each, part)
            with _memory_explained(runner):
                _embed_table(table_folder(os.fspath(store), each, part), made_by, items, runner, shard_rows)
        del spec, module, runner  # before the next tower is loaded


def _require_views(views: int, augment: str) -> None:
    if views < 1 or (views > 1 and augment == "none"):
        raise InvalidValue(
            f"expected views ≥ 1, and an augmentation where views > 1; found views={views}, augment={augment!r}"
        )


def _tables(
    corpus: Corpus, tower: Literal["image", "text", "both"], split: Literal["train", "val", "both"]
) -> list[tuple[Tower, Part]]:
    """The tables to make of what the data has."""
    from clip_distill.corpus.parts import parts_there
    from clip_distill.towers.spec import TOWERS

    say(*corpus.report.lines())
    splits: tuple[Split, ...] = ("train", "val") if split == "both" else (split,)
    towers: tuple[Tower, ...] = TOWERS if tower == "both" else (tower,)
    return [*parts_there(corpus, list(itertools.product(towers, splits)))]


def _over_ray(options: dict[str, Any], address: str | None) -> None:
    """Make the same tables by the tasks of a Ray cluster, as many as run at once."""
    from clip_distill.system.ray_tasks import cluster, each_as_ended

    for name in ("data", "store"):
        place = spelt(options[name])
        options[name] = os.path.abspath(place) if place is not None and "://" not in place else place
    with cluster(address) as world:
        tasks = [(rank, world, options) for rank in range(world)]
        for done, _ in enumerate(each_as_ended(_embed_as, tasks), 1):
            say(f"{done} of {world} tasks have ended")


def _embed_as(rank: int, world: int, options: dict[str, Any]) -> None:
    """One task: the shards of this process of so many. In Ray's own worker, since a command started from it would
    outlive a worker that dies, and hold its lock."""
    mine = {"RANK": str(rank), "WORLD_SIZE": str(world)}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        embed(**options)
    finally:  # workers are used again
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _memory_explained(runner: Runner) -> Iterator[None]:
    """Say which batch fits, where a GPU's memory is not enough.

    Raises:
        OutOfMemory: It is not.
    """
    import torch

    from clip_distill.towers.memory import explained

    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = "What is finished is kept: run the command again. --precision fp16 takes less memory, too"
        raise explained(
            error, runner.device, "--batch_size", runner.batch_size, lambda size: runner(runner.blank(size)), fix
        ) from error


def _embed_table(folder: Location, made_by: Manifest, items: pa.Table, runner: Runner, shard_rows: int) -> None:
    """Make one table, and say what it holds."""
    from clip_distill.store.build import build_table, process_rank
    from clip_distill.store.manifest import MANIFEST
    from clip_distill.store.photos import readable, require_same_sizes
    from clip_distill.store.table import Store

    are_photos = made_by.tower == "image"
    if are_photos and (folder / MANIFEST).is_file():
        require_same_sizes(Store(folder), items)
    try_again = readable if are_photos else None
    table = build_table(folder, made_by, items, partial(_embed_with, runner), shard_rows, try_again)
    if table is None:
        rank, world = process_rank()
        LOGGER.info(
            f"{folder}: process {rank} of {world} has written its shards; the last one to end finishes the table"
        )
        return
    if made_by.views < table.manifest.views:
        LOGGER.info(f"{folder}: has {table.manifest.views} views already, and keeps them; {made_by.views} asked for")
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in table.manifest.skipped.items())
    LOGGER.info(f"{folder}: {len(table)} rows × {table.manifest.views} × {table.manifest.dim}{skipped}")


def _embed_with(runner: Runner, made_by: Manifest) -> EmbedParts:
    """The function that embeds what the manifest says."""
    from clip_distill.pixels.views import Views
    from clip_distill.store.embed import embed_images, embed_texts

    title = f"{made_by.tower}s, {made_by.split}"
    if made_by.tower == "text":
        return partial(embed_texts, runner, title=title)
    views = Views(made_by.teacher["preprocess"], made_by.augment, made_by.seed)
    return partial(embed_images, runner, views=views, title=title)
