"""What students keep of their teacher beyond the kind of data they were trained on.

    python benchmarks/agreement.py --data ../shared/flickr8k --store stores/flickr8k \\
        --text_student runs/flickr8k_text --image_student runs/flickr8k_image --out results/agreement.json

Each row is a set of texts or images: the data's validation split, and others that it has nothing of. Texts: ImageNet's
class names in CLIP's prompt, all of them, and apart for names that the student's vocabulary has whole and names that
it must spell; sixty photo searches; common words by themselves; and descriptions of drawn scenes. Images: those scenes,
drawn; and close-ups, a tenth of a validation photo's area each.

- cosine: mean over the set, between student's and teacher's embedding
- neighbours: how many of a member's 10 nearest others are the teacher's 10
- answers: how many of the 10 validation photos that a text finds (captions that an image finds), by the teacher's other
  tower, are those that the teacher finds
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image
from searches import SEARCHES
from torch import Tensor, nn

from clip_distill.corpus.layout import IMAGES_SCHEMA, scan
from clip_distill.evaluation.loading import load_student, require_taught_by
from clip_distill.evaluation.recall import mean_cosine, neighbour_overlap
from clip_distill.evaluation.retrieval import encode_images, encode_texts
from clip_distill.pixels.photos import decode, read_bytes_of
from clip_distill.store.ensemble import open_table
from clip_distill.system.files import write_json
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.prompts import whole_words
from clip_distill.tokens.pruned import kept_ids, whole
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec
from clip_distill.walkthrough.scenes import draw, sample_scenes

FREQUENT = 3000  # words of CLIP's tokenizer, from its front, of which common ones are drawn
CLIP = TokenizerSpec("clip", 77, 49408)
SIZE = 300  # members of every set at most, since in a larger one neighbours lie closer
CPU = torch.device("cpu")
K = 10


@dataclass(frozen=True)
class Row:
    """Agreement of a student and its teacher on one set."""

    tower: Tower
    kind: str
    count: int
    cosine: float
    neighbours: float
    answers: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for `clip-distill embed`")
    parser.add_argument("--store", required=True, help="made from it: its validation tables are what texts search in")
    parser.add_argument("--teacher", help="default: the store's")
    parser.add_argument("--text_student", help="run folder")
    parser.add_argument("--image_student", help="run folder")
    parser.add_argument(
        "--known_to", help="run whose vocabulary tells known words from others; default: --text_student"
    )
    parser.add_argument("--out", help="JSON file")
    given = parser.parse_args()
    if not (given.text_student or given.image_student):
        parser.error("expected --text_student or --image_student, or both")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if given.text_student:
            rows += agreement(given, "text", given.text_student, Path(folder))
        if given.image_student:
            rows += agreement(given, "image", given.image_student, Path(folder))
    print("\n| tower | set | members | cosine | neighbours | answers |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        shares = f"{row.cosine:.3f} | {row.neighbours:.0%} | {row.answers:.0%}"
        print(f"| {row.tower} | {row.kind} | {row.count:,} | {shares} |")
    if given.out:
        Path(given.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(given.out), {"rows": [vars(row) for row in rows], "arguments": vars(given)})


def agreement(given: argparse.Namespace, tower: Tower, name: str, folder: Path) -> Iterator[Row]:
    """A row per set."""
    spec, student = load_student(name, tower)
    store = open_table(given.store, "image" if tower == "text" else "text", "val")
    require_taught_by(f"student {name}", spec, store.manifest.teacher)
    theirs, teacher = load_teacher(given.teacher or store.manifest.teacher["name"], tower)
    others = torch.from_numpy(store.all_embeddings()).float()
    corpus = scan(given.data)
    if tower == "text":
        reader = spec if given.known_to is None else load_student(given.known_to, "text")[0]
        sets: dict[str, Any] = text_sets(corpus.val.require_captions(), reader)
    else:
        sets = image_sets(corpus.val.require_images(), folder)
    for kind, members in sets.items():
        if len(members) <= K:
            continue
        print(f"{tower}: {kind}, {len(members)}", file=sys.stderr, flush=True)
        own, target = encode(spec, student, members), encode(theirs, teacher.eval(), members)
        near = neighbour_overlap(own, target, K)
        yield Row(tower, kind, len(members), mean_cosine(own, target), near, same_answers(own, target, others))


def encode(spec: TowerSpec, module: nn.Module, members: Any) -> Tensor:
    """[N, D] of captions or photos."""
    if isinstance(members, list):
        return encode_texts(spec, module, members, CPU)
    return encode_images(spec, module, members, CPU)[0]


def same_answers(own: Tensor, target: Tensor, others: Tensor) -> float:
    """Share of the 10 nearest of `others` [M, D] that student's and teacher's embeddings [N, D] have in common."""
    others = F.normalize(others, dim=-1)
    found, wanted = ((F.normalize(each, dim=-1) @ others.T).topk(K).indices for each in (own, target))
    return float((found[:, :, None] == wanted[:, None, :]).any(-1).float().mean())


def text_sets(captions: pa.Table, spec: TowerSpec) -> dict[str, list[str]]:
    """Name → texts."""
    rng = random.Random(0)
    prompts = [f"a photo of a {name}." for name in IMAGENET_CLASSNAMES]
    spelt = must_spell(prompts, TokenizerSpec(**spec.tokenizer))
    print(f"{sum(spelt)} of {len(spelt)} class names have words to spell", file=sys.stderr, flush=True)
    scenes = sample_scenes(rng)
    sets = {
        "validation captions": captions.column("text").unique().to_pylist(),
        "class names, known words": [text for text, hard in zip(prompts, spelt, strict=True) if not hard],
        "class names, spelt words": [text for text, hard in zip(prompts, spelt, strict=True) if hard],
        "drawn scenes' captions": [next(scenes).captions(rng, 1)[0] for _ in range(SIZE)],
    }
    capped = {kind: rng.sample(texts, min(SIZE, len(texts))) for kind, texts in sets.items()}
    common = [word for word in whole_words(CLIP)[:FREQUENT] if len(word) > 2]
    return capped | {
        "class names, all": prompts,
        "photo searches": SEARCHES,
        "common words": random.Random(1).sample(common, SIZE),
    }


def must_spell(texts: list[str], tokenizer: TokenizerSpec) -> list[bool]:
    """Which texts have tokens that a pruned vocabulary lacks; none where it is whole."""
    kept = kept_ids(tokenizer.as_dict())
    if kept is None:
        return [False] * len(texts)
    tokens = tokenize(whole(tokenizer), texts)
    lacking = np.append(0, np.cumsum(~np.isin(tokens.flat, kept)))
    return [bool(count) for count in np.diff(lacking[tokens.offsets])]


def image_sets(photos: pa.Table, folder: Path) -> dict[str, pa.Table]:
    """Name → table of `data.layout`; what is drawn or cut lies in the folder."""
    rng = random.Random(0)
    photos = photos.slice(0, SIZE)
    scenes = sample_scenes(rng)
    drawn = (draw(next(scenes), 224, rng) for _ in range(SIZE))
    close = (close_up(row, rng) for row in photos.to_pylist())
    return {
        "validation photos": photos,
        "close-ups of them": saved(close, folder / "close"),
        "drawn scenes": saved(drawn, folder / "drawn"),
    }


def close_up(row: dict[str, Any], rng: random.Random) -> Image.Image:
    """A tenth of a photo's area, anywhere in it."""
    photo = decode(read_bytes_of(row["path"], row["offset"], row["size"])).convert("RGB")
    width, height = (round(side * 0.1**0.5) for side in photo.size)
    left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def saved(pictures: Iterator[Image.Image], folder: Path) -> pa.Table:
    """Write pictures without loss; their table."""
    folder.mkdir(parents=True)
    rows = []
    for number, picture in enumerate(pictures):
        path = folder / f"{number:04}.png"
        picture.save(path)
        rows.append({"id": path.name, "path": str(path), "offset": -1, "size": -1})
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)


if __name__ == "__main__":
    main()
