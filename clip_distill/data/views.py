"""Views: model-ready pixels as a pure function of (sample id, view number, seed).

View 0 is the teacher's own geometry, without augmentation. Views 1 and up are augmented; their randomness comes from
a generator seeded by the three, so a loader rebuilds the very pixels that the teacher saw, years later, in any order.
Shapes: B batch, S image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import pil_to_tensor

from clip_distill.registry import resolve

Transform = Callable[[Image.Image], Image.Image]
Augmentation = Callable[[Transform, int, InterpolationMode], Transform]

AUGMENTATIONS = {
    "none": "clip_distill.data.views:none",
    "crop_flip": "clip_distill.data.views:crop_flip",
    "crop_flip_color": "clip_distill.data.views:crop_flip_color",
    "randaugment": "clip_distill.data.views:randaugment",
    "original": "clip_distill.data.views:original",
}


def none(plain: Transform, size: int, interpolation: InterpolationMode) -> Transform:
    """Every view is view 0."""
    return plain


def crop_flip(plain: Transform, size: int, interpolation: InterpolationMode) -> Transform:
    """A resized crop of 50–100 % of the area, flipped left to right half the time."""
    crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=interpolation)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def crop_flip_color(plain: Transform, size: int, interpolation: InterpolationMode) -> Transform:
    """`crop_flip`, then brightness, contrast, saturation and hue."""
    jitter = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    return v2.Compose([crop_flip(plain, size, interpolation), jitter])


def randaugment(plain: Transform, size: int, interpolation: InterpolationMode) -> Transform:
    """`crop_flip`, then RandAugment (Cubuk et al., 2019), two operations of magnitude 9."""
    return v2.Compose([crop_flip(plain, size, interpolation), v2.RandAugment(2, 9, interpolation=interpolation)])


def original(plain: Transform, size: int, interpolation: InterpolationMode) -> Transform:
    """What the original project did: flips both ways and a rotation of up to 30°, on the plain view."""
    rotate = v2.RandomRotation(30, interpolation=InterpolationMode.BILINEAR)
    return v2.Compose([plain, v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), rotate])


class Views:
    """Renders views of images.

    Args:
        preprocess: The teacher's `preprocess_cfg`; another `size` renders the same crops at the student's resolution.
        augment: Name in AUGMENTATIONS, or `module:Attr` of your own `(plain, size, interpolation) -> transform`, which
            must draw its randomness from torch's global generator.
        seed: The view seed.
    """

    def __init__(self, preprocess: dict[str, Any], augment: str = "none", seed: int = 0) -> None:
        cfg = PreprocessCfg(**preprocess)
        self.plain = v2.Compose(image_transform_v2(cfg, is_train=False).transforms[:-2])  # less to-tensor and normalise
        side = cfg.size if isinstance(cfg.size, int) else cfg.size[0]
        bilinear = cfg.interpolation == "bilinear"
        interpolation = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
        make: Augmentation = resolve("augmentation", AUGMENTATIONS, augment)
        self.augmented = make(self.plain, side, interpolation)
        self.seed = seed

    def __call__(self, image: Image.Image, id: str, view: int) -> Tensor:
        """uint8 [3, S, S] of one view of an RGB image."""
        if view == 0:
            return pil_to_tensor(self.plain(image))
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(view_seed(id, view, self.seed))
        try:
            return pil_to_tensor(self.augmented(image).convert("RGB"))
        finally:
            torch.set_rng_state(state)


def view_seed(id: str, view: int, seed: int) -> int:
    """63 bits that any machine computes alike."""
    digest = hashlib.blake2b(f"{seed}/{view}/{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def normalise(pixels: Tensor, preprocess: dict[str, Any]) -> Tensor:
    """uint8 [B, 3, S, S] → float32, with the teacher's mean and std; on the device, where a byte is cheap to bring."""
    mean = torch.tensor(preprocess["mean"], device=pixels.device).view(3, 1, 1)
    std = torch.tensor(preprocess["std"], device=pixels.device).view(3, 1, 1)
    floats = pixels.to(torch.float32, memory_format=torch.channels_last)  # convolutions run twice as fast on it
    return floats.div(255).sub(mean).div(std)
