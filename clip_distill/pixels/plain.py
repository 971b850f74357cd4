"""The plain view: a teacher's own geometry, by Pillow alone, so that it runs where torch is not installed.

Shapes: S image side (height and width where they differ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_distill.pixels.photos import Photo, reasons
from clip_distill.system.errors import InvalidValue

Transform = Callable[[Image.Image], Image.Image]
EXIF = "exif"  # in a `preprocess_cfg`, beside open_clip's keys: whether photos are turned as their EXIF says
SCALES = (8, 4, 2)  # at which libjpeg decodes
LONG = 16  # times a side: of a photo that is longer only what is kept is resized, so that a strip takes no gigabytes
SPARE = 2  # a part that is decoded small has at least twice the pixels of what it is brought to, in width and height
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Region(NamedTuple):
    """A part of a photo, in pixels of the whole photo, and the size that it is brought to.

    `beyond` says that resampling reads past the part's edges, as where the whole is resized and then cropped.
    """

    left: float
    top: float
    right: float
    bottom: float
    size: tuple[int, int]  # (width, height)
    beyond: bool = False


class Resized:
    """A transform that begins by resizing a part of the photo, chosen by the photo's size alone.

    So a large JPEG need not be decoded whole: it is decoded at a half, a quarter or an eighth of a side if that leaves
    the part at least twice the size that it is brought to. The part is the same at every scale, and the pixels differ
    by a fifth of one level of 255 on average. With less to spare, edges lose sharpness.

    Args:
        choose: (width, height) of the photo → the part.
        interpolation: bicubic or bilinear.
        steps: What follows, of the size that the part was brought to.
        turns: Whether photos are turned first, as their EXIF orientation says.
    """

    def __init__(
        self, choose: Callable[[int, int], Region], interpolation: str, *steps: Transform, turns: bool = False
    ) -> None:
        self.choose, self.interpolation, self.steps, self.turns = choose, interpolation, steps, turns

    def then(self, *steps: Transform) -> Resized:
        """This transform, and more steps after it."""
        return Resized(self.choose, self.interpolation, *self.steps, *steps, turns=self.turns)

    def __call__(self, photo: Photo | Image.Image) -> Image.Image:
        photo = upright(photo) if self.turns else photo
        region = self.choose(*photo.size)
        with reasons():
            image, scale = photo.decode(scale_for(region)) if isinstance(photo, Photo) else (photo, 1)
            image = resize(image, region, scale, FILTERS[self.interpolation])
            for step in self.steps:
                image = step(image)
        return image


def upright(photo: Photo | Image.Image) -> Photo | Image.Image:
    """A photo, turned as its EXIF orientation says; an image without EXIF stays as it is."""
    return photo.upright() if isinstance(photo, Photo) else ImageOps.exif_transpose(photo)


def open_clip_cfg(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Of a tower's preprocessing the keys that open_clip knows."""
    return {key: value for key, value in preprocess.items() if key != EXIF}


def scale_for(region: Region) -> int:
    """How many times shorter a side may be decoded."""
    sides = (region.right - region.left) / region.size[0], (region.bottom - region.top) / region.size[1]
    return next((scale for scale in SCALES if min(sides) >= SPARE * scale), 1)


def resize(image: Image.Image, region: Region, scale: int, resample: Image.Resampling) -> Image.Image:
    """Resize a part of a photo that was decoded `scale` times shorter; at scale 1, torchvision's `resized_crop`."""
    left, top, right, bottom = (side / scale for side in region[:4])
    # the part's edges may lie within pixels: cut outside of them, and leave the fractions to the resampling
    hull = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    if region.beyond:
        hull = (0, 0, *image.size)
    if hull != (0, 0, *image.size):
        image = image.crop(hull)
    box = left - hull[0], top - hull[1], right - hull[0], bottom - hull[1]
    return image.resize(region.size, resample, box) if image.size != region.size else image


def plain_view(preprocess: Mapping[str, Any]) -> Resized:
    """The geometry of open_clip's preprocessing (`open_clip.transform.image_transform`): resize, then crop or pad.

    Args:
        preprocess: open_clip's `preprocess_cfg`; `exif` in it turns photos first.

    Raises:
        InvalidValue: It has another resize mode than open_clip's three.
    """
    height, width = (int(side) for side in np.broadcast_to(preprocess["size"], 2))
    mode, interpolation = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if mode not in ("shortest", "longest", "squash"):
        raise InvalidValue(f"resize_mode: expected shortest, longest or squash, found {mode!r}")
    fill = preprocess.get("fill_color", 0)

    def choose(wide: int, high: int) -> Region:
        if mode == "squash":
            new = (width, height)
        elif mode == "shortest" and height == width:  # torchvision's Resize, which cuts fractions
            long = int(width * max(wide, high) / min(wide, high))
            new = (long, width) if high <= wide else (width, long)
        else:
            ratio = (max if mode == "longest" else min)(high / height, wide / width)
            new = (round(wide / ratio), round(high / ratio))
        new = max(1, new[0]), max(1, new[1])
        if max(new) <= LONG * max(width, height):
            return Region(0, 0, wide, high, new)
        # what `crop_or_pad` keeps of it, in pixels of the photo
        kept = tuple(min(found, side) for found, side in zip(new, (width, height), strict=True))
        left, top = (round((found - side) / 2.0) for found, side in zip(new, kept, strict=True))
        across, down = wide / new[0], high / new[1]
        box = left * across, top * down, (left + kept[0]) * across, (top + kept[1]) * down
        return Region(*box, (kept[0], kept[1]), beyond=True)

    def crop_or_pad(image: Image.Image) -> Image.Image:
        left, top = (round((found - side) / 2.0) for found, side in zip(image.size, (width, height), strict=True))
        if image.width < width or image.height < height:
            # padding begins with the smaller half, cropping with the rounded one
            left = -((width - image.width) // 2) if image.width < width else left
            top = -((height - image.height) // 2) if image.height < height else top
            whole = Image.new(image.mode, (width, height), (fill,) * 3)
            whole.paste(image, (-left, -top))
            return whole
        return image.crop((left, top, left + width, top + height)) if image.size != (width, height) else image

    # open_clip leaves a photo that is no square at bicubic
    bicubic = mode == "shortest" and height != width
    turns = bool(preprocess.get(EXIF, False))
    return Resized(choose, "bicubic" if bicubic else interpolation, crop_or_pad, turns=turns)


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [S, S, 3] of an image."""
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def to_input(images: Sequence[NDArray[np.uint8]], preprocess: Mapping[str, Any]) -> NDArray[np.float32]:
    """uint8 [S, S, 3] each → float32 [B, 3, S, S], with the teacher's mean and std, as a tower takes it."""
    high, wide, _ = images[0].shape
    floats = np.empty((len(images), 3, high, wide), np.float32)
    for row, image in zip(floats, images, strict=True):
        row[...] = image.transpose(2, 0, 1)  # planes first: what follows then runs along memory, four times as fast
    floats /= 255
    floats -= np.asarray(preprocess["mean"], np.float32)[:, None, None]
    floats /= np.asarray(preprocess["std"], np.float32)[:, None, None]
    return floats
