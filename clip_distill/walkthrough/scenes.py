"""Draw a data set of small scenes with compositional captions, in the folder layout that real data has.

A scene is two groups of shapes, one beside or above the other, on a background:
"two small red circles above one large blue star on a green background". No two scenes are alike, in any split.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from clip_distill.system.errors import AlreadyExists
from clip_distill.system.files import read_json, write_json
from clip_distill.system.talk import progress

COLOURS = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (30, 150, 50),
    "blue": (40, 80, 220),
    "purple": (140, 40, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = {  # and their plurals
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "ring": "rings",
    "star": "stars",
}
SIZES = {"small": ("small", "tiny"), "large": ("large", "big")}
COUNTS = {1: ("one", "a"), 2: ("two",), 3: ("three",)}
RADII = {"small": 0.075, "large": 0.14}  # of the picture's side; three large shapes fit side by side

TEMPLATES = {
    "above": (
        "{first} above {second} on {background} background",
        "{second} below {first} on {background} background",
        "{background} picture with {first} over {second}",
        "{first} at the top and {second} at the bottom, {background} background",
    ),
    "left": (
        "{first} to the left of {second} on {background} background",
        "{second} to the right of {first} on {background} background",
        "{background} picture with {first} left of {second}",
        "{first} on the left and {second} on the right, {background} background",
    ),
}

FORMAT = 1  # raise it when the same seed draws something else, so that older folders are drawn again
MARKER = "scenes.json"
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Group:
    """`count` equal shapes."""

    count: int
    size: Literal["small", "large"]
    colour: str
    shape: str

    def words(self, rng: random.Random) -> str:
        """The group as a noun phrase, with synonyms drawn from `rng`."""
        noun = self.shape if self.count == 1 else SHAPES[self.shape]
        return f"{rng.choice(COUNTS[self.count])} {rng.choice(SIZES[self.size])} {self.colour} {noun}"


@dataclass(frozen=True)
class Scene:
    """`first` is above or to the left of `second`."""

    first: Group
    relation: Literal["above", "left"]
    second: Group
    background: str

    def captions(self, rng: random.Random, count: int) -> list[str]:
        """`count` different sentences, each of which names everything in the scene."""
        article = "an" if self.background[0] in "aeiou" else "a"
        return [
            template.format(
                first=self.first.words(rng), second=self.second.words(rng), background=f"{article} {self.background}"
            )
            for template in rng.sample(TEMPLATES[self.relation], count)
        ]


def sample_scenes(rng: random.Random) -> Iterator[Scene]:
    """Scenes without end and without repetition; the two groups and the background differ in colour."""
    seen: set[Scene] = set()
    while True:
        first, second, background = rng.sample(sorted(COLOURS), 3)
        groups = [
            Group(rng.choice(sorted(COUNTS)), rng.choice(("small", "large")), colour, rng.choice(sorted(SHAPES)))
            for colour in (first, second)
        ]
        scene = Scene(groups[0], rng.choice(("above", "left")), groups[1], background)
        if scene not in seen:
            seen.add(scene)
            yield scene


def draw(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    """Paint the scene; `rng` chooses where in its half of the picture each shape lies.

    Returns:
        An RGB picture of `side` × `side` pixels, anti-aliased.
    """
    large = side * SUPERSAMPLING
    picture = Image.new("RGB", (large, large), COLOURS[scene.background])
    canvas = ImageDraw.Draw(picture)
    for half, group in enumerate((scene.first, scene.second)):
        radius = RADII[group.size]
        slot = 1 / group.count  # shapes share their half in equal slots, so that they never touch
        for index in range(group.count):
            along = slot * (index + 0.5) + rng.uniform(-1, 1) * max(0.0, slot / 2 - radius - 0.02)
            across = 0.5 * (half + 0.5) + rng.uniform(-1, 1) * max(0.0, 0.25 - radius - 0.02)
            x, y = (along, across) if scene.relation == "above" else (across, along)
            paint(canvas, group.shape, x * large, y * large, radius * large, COLOURS[group.colour])
    return picture.reduce(SUPERSAMPLING)


def paint(canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    """One shape of radius `r` pixels around (x, y)."""
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        canvas.ellipse(box, fill=colour)
    elif shape == "ring":
        canvas.ellipse(box, outline=colour, width=round(0.45 * r))
    elif shape == "square":
        canvas.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
    elif shape == "cross":
        canvas.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=colour)
        canvas.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=colour)
    else:
        points, inner = (3, 0.5) if shape == "triangle" else (5, 0.45)
        radii = [r if corner % 2 == 0 else inner * r for corner in range(2 * points)]
        angles = [math.pi * corner / points - math.pi / 2 for corner in range(2 * points)]
        corners = [(x + d * math.cos(a), y + d * math.sin(a)) for d, a in zip(radii, angles, strict=True)]
        canvas.polygon(corners, fill=colour)


def draw_dataset(out: Path, train: int = 3000, val: int = 400, side: int = 64, seed: int = 0) -> Path:
    """Write the data set to `out`: whole, or not at all. A folder drawn with the same arguments is kept.

    Each training photo has two COCO captions and each validation photo three. `CC/` holds twice as many captions as
    there are training photos, of scenes that are not drawn: text towers need no photos.

    Args:
        out: The folder to make.
        train: Number of training photos.
        val: Number of validation photos.
        side: Width and height of the photos in pixels.
        seed: The same seed draws the same pixels and writes the same captions.

    Raises:
        FileExistsError: `out` holds something else than drawn scenes.
    """
    made_from = {"format": FORMAT, "train": train, "val": val, "side": side, "seed": seed}
    if out.exists():
        if not (out / MARKER).is_file():
            raise AlreadyExists(
                f"{out}: expected no folder or one of drawn scenes ({MARKER}), found other files; use another folder"
            )
        if read_json(out / MARKER) == made_from:
            return out
    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier run that was stopped
    rng = random.Random(seed)
    scenes = sample_scenes(rng)
    write_split(aside, "train", scenes, train, 2, side, rng)
    write_split(aside, "val", scenes, val, 3, side, rng)
    (aside / "CC").mkdir()
    with open(aside / "CC/Train_GCC-training.tsv", "w", encoding="utf-8") as file:
        for index in range(2 * train):
            file.write(f"{next(scenes).captions(rng, 1)[0]}\thttps://example.org/scene_{index:06}.jpg\n")
    write_json(aside / MARKER, made_from)
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)
    return out


def write_split(
    root: Path,
    split: Literal["train", "val"],
    scenes: Iterator[Scene],
    photos: int,
    captions: int,
    side: int,
    rng: random.Random,
) -> None:
    """Draw the next `photos` scenes as JPEG files, with `captions` captions each in a COCO-format JSON."""
    folder = root / ("image" if split == "train" else "COCO/val2017")
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in progress(range(photos), desc=f"drawing {split} scenes", unit="photo"):
        scene = next(scenes)
        name = f"{split}_{index:06}.jpg"
        # full chroma: the default halves it, which smears colours over shapes a few pixels wide
        draw(scene, side, rng).save(folder / name, quality=92, subsampling=0)
        images.append({"id": index, "file_name": name, "width": side, "height": side})
        for caption in scene.captions(rng, captions):
            annotations.append({"id": len(annotations), "image_id": index, "caption": caption})
    write_json(root / f"COCO/annotations/captions_{split}2017.json", {"images": images, "annotations": annotations})
