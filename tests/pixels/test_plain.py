"""The plain view without torch: open_clip's very pixels, of any photo, at any size and mode."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clip_distill.pixels.plain import plain_view, to_array, to_input

SIZES = [(48, 40), (40, 48), (33, 97), (97, 33), (224, 224), (7, 90), (500, 333), (31, 32)]
SQUARES, OTHERS = (32, 57), ((24, 40), (40, 24), (33, 32))


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [*SQUARES, *OTHERS])
def test_the_pixels_are_open_clips(mode: str, interpolation: str, side: Any) -> None:
    cfg = PreprocessCfg(
        size=side,
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=7,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )
    theirs = image_transform_v2(cfg, is_train=False)
    plain = vars(cfg)
    for size in SIZES:
        ours = to_input([to_array(plain_view(plain)(noise(size)))], plain)
        torch.testing.assert_close(torch.from_numpy(ours[0]), theirs(noise(size)), atol=1e-6, rtol=1e-6)


def test_an_unknown_mode_is_told() -> None:
    with pytest.raises(ValueError, match="expected shortest, longest or squash, found 'crop'"):
        plain_view({"size": 32, "resize_mode": "crop"})


def test_it_needs_no_torch() -> None:
    code = "import sys, clip_distill.pixels.plain; sys.exit(str({'torch', 'open_clip'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_batch_is_normalised_photo_by_photo() -> None:
    photos = [to_array(noise(size)) for size in ((8, 8), (9, 9))]
    resized = [photo[:8, :8] for photo in photos]
    whole = to_input(resized, {"mean": (0, 0, 0), "std": (1, 1, 1)})
    assert whole.shape == (2, 3, 8, 8)
    assert list(itertools.chain(whole[1, :, 3, 5] * 255)) == pytest.approx(resized[1][3, 5].tolist())
