"""Views: model-ready pixels as a pure function of (sample id, view number, seed).

View 0 is the teacher's own geometry, without augmentation. Views 1 and up are augmented; their randomness comes from
a generator seeded by the three, so a loader rebuilds the very pixels that the teacher saw, years later, in any order.
Shapes: B batch, S image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from clip_distill.pixels.photos import Photo
from clip_distill.pixels.plain import Region, Resized, Transform, open_clip_cfg, plain_view, to_array, upright
from clip_distill.system.registry import resolve

Augmentation = Callable[[Resized, int, InterpolationMode], Transform]

AUGMENTATIONS = {
    "none": "clip_distill.pixels.views:none",
    "crop_flip": "clip_distill.pixels.views:crop_flip",
    "crop_flip_color": "clip_distill.pixels.views:crop_flip_color",
    "randaugment": "clip_distill.pixels.views:randaugment",
    "original": "clip_distill.pixels.views:original",
}


def none(plain: Resized, size: int, interpolation: InterpolationMode) -> Resized:
    """Every view is view 0."""
    return plain


def crop_flip(plain: Resized, size: int, interpolation: InterpolationMode) -> Resized:
    """A resized crop of 50–100 % of the area, flipped left to right half the time."""
    crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0))

    def choose(width: int, height: int) -> Region:
        # torchvision draws by an image's size; one pixel, spread, has it without memory
        drawn = crop.make_params([torch.empty(1, 1, 1).expand(3, height, width)])
        left, top = drawn["left"], drawn["top"]
        return Region(left, top, left + drawn["width"], top + drawn["height"], (size, size))

    return Resized(choose, interpolation.value, v2.RandomHorizontalFlip())


def crop_flip_color(plain: Resized, size: int, interpolation: InterpolationMode) -> Resized:
    """`crop_flip`, then brightness, contrast, saturation and hue."""
    jitter = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    return crop_flip(plain, size, interpolation).then(jitter)


def randaugment(plain: Resized, size: int, interpolation: InterpolationMode) -> Resized:
    """`crop_flip`, then RandAugment (Cubuk et al., 2019), two operations of magnitude 9."""
    return crop_flip(plain, size, interpolation).then(v2.RandAugment(2, 9, interpolation=interpolation))


def original(plain: Resized, size: int, interpolation: InterpolationMode) -> Resized:
    """What the original project did: flips both ways and a rotation of up to 30°, on the plain view."""
    rotate = v2.RandomRotation(30, interpolation=InterpolationMode.BILINEAR)
    return plain.then(v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), rotate)


class Views:
    """Renders views of images.

    Args:
        preprocess: The teacher's `preprocess_cfg`; another `size` renders the same crops at the student's resolution.
        augment: Name in AUGMENTATIONS, or `module:Attr` of your own `(plain, size, interpolation) -> transform`, which
            must draw its randomness from torch's global generator.
        seed: The view seed.
    """

    def __init__(self, preprocess: dict[str, Any], augment: str = "none", seed: int = 0) -> None:
        cfg = PreprocessCfg(**open_clip_cfg(preprocess))
        size: tuple[int, int] = (cfg.size, cfg.size) if isinstance(cfg.size, int) else tuple(cfg.size)
        self.height, self.width = size
        self.plain = plain_view({**preprocess, **asdict(cfg)})
        make: Augmentation = resolve("augmentation", AUGMENTATIONS, augment)
        self.augmented = make(self.plain, self.height, InterpolationMode(self.plain.interpolation))
        self.preprocess, self.augment, self.seed = preprocess, augment, seed

    def __reduce__(self) -> tuple[type[Views], tuple[dict[str, Any], str, int]]:
        # transforms hold functions, which can't go to a worker that is spawned; it makes its own
        return Views, (self.preprocess, self.augment, self.seed)

    def made_from(self, views: int) -> dict[str, Any]:
        """What decides the pixels of the first views, beside the photos; mean and std come after."""
        made_from = {key: value for key, value in self.preprocess.items() if key not in ("mean", "std")}
        made_from["size"] = [self.height, self.width]
        # a plain view is the same under any augmentation and seed
        return made_from | ({"augment": self.augment, "seed": self.seed} if views > 1 else {})

    def __call__(self, photo: Photo | Image.Image, id: str, view: int) -> Tensor:
        """uint8 [3, S, S] of one view of a photo, or of an RGB image; channels last in memory.

        Raises:
            BadImage: The photo can't be decoded.
        """
        photo = upright(photo) if self.plain.turns else photo
        if view == 0:
            return _pixels(self.plain(photo))
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(view_seed(id, view, self.seed))
        try:
            if isinstance(self.augmented, Resized):
                return _pixels(self.augmented(photo))
            return _pixels(self.augmented(photo.decode()[0] if isinstance(photo, Photo) else photo))
        finally:
            torch.set_rng_state(state)


def _pixels(image: Image.Image) -> Tensor:
    """uint8 [3, S, S]; convolutions want channels last in memory, as Pillow has them."""
    return torch.from_numpy(to_array(image)).permute(2, 0, 1)


def stack(views: Sequence[Tensor]) -> Tensor:
    """[3, S, S] each → [B, 3, S, S], channels last in memory as they are, so that it takes no shuffling."""
    return torch.stack([view.permute(1, 2, 0) for view in views]).permute(0, 3, 1, 2)


def view_seed(id: str, view: int, seed: int) -> int:
    """63 bits that any machine computes alike."""
    digest = hashlib.blake2b(f"{seed}/{view}/{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def normalise(pixels: Tensor, preprocess: dict[str, Any]) -> Tensor:
    """uint8 [B, 3, S, S] → float32, with the teacher's mean and std; on the device, where a byte is cheap to bring."""
    mean = torch.tensor(preprocess["mean"], device=pixels.device).view(3, 1, 1)
    std = torch.tensor(preprocess["std"], device=pixels.device).view(3, 1, 1)
    floats = pixels.to(torch.float32, memory_format=torch.channels_last)  # convolutions run twice as fast on it
    return floats.div_(255).sub_(mean).div_(std)
