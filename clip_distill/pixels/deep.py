"""Photos of more than 8 bits a channel, brought to 8 by the range that their format states."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from clip_distill.system.talk import say

DEEP = ("I", "F")  # Pillow's modes of 32 bits, beside those that begin with I;16
BITS, SAMPLE_FORMAT, LOW, HIGH = 258, 339, (340, 280), (341, 281)  # TIFF 6.0's tags
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # values of SampleFormat
_say_once = cache(say)


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow would cut its numbers off at 255, or leave 256 of them to a level."""
    return image.mode in DEEP or image.mode.startswith("I;16")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """RGB of a photo whose one channel has 16 or 32 bits: the lowest number of its format is black, the highest white.

    The range is what the TIFF's tags state, else that of its numbers' type; of floats 0 to 1, or their own where they
    go beyond. Numbers that are none are black.
    """
    stored = np.asarray(image)
    if image.mode == "I" and _first(getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT), SIGNED) == UNSIGNED:
        stored = stored.view(np.uint32)  # which Pillow takes for signed
    numbers = stored.astype(np.float64)
    numbers[~np.isfinite(numbers)] = 0
    low, high = _range(image, numbers)
    _say_once(f"photos of more than 8 bits ({image.format}, {image.mode}) are scaled from {low:g}…{high:g} to 0…255")
    scaled = (numbers - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")


def _range(image: Image.Image, numbers: Any) -> tuple[float, float]:
    """The lowest and the highest number that a photo can have."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(_first(tags.get(BITS), 16 if image.mode != "F" else 32))
    kind = _first(tags.get(SAMPLE_FORMAT), FLOAT if image.mode == "F" else UNSIGNED)
    low, high = (next((_first(tags[tag], 0) for tag in names if tag in tags), None) for names in (LOW, HIGH))
    if kind == FLOAT:
        beyond = numbers.size and (numbers.min() < 0 or numbers.max() > 1)
        usual = (numbers.min(), numbers.max()) if beyond else (0, 1)
    elif kind == SIGNED:
        usual = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    else:
        usual = (0, 2**bits - 1)
    return float(usual[0] if low is None else low), float(usual[1] if high is None else high)


def _first(value: Any, otherwise: float) -> float:
    """A tag's value, of which there may be one for each channel."""
    if value is None:
        return otherwise
    return float(value[0] if isinstance(value, tuple) else value)
