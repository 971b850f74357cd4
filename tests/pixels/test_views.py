"""Views: the teacher's own pixels, and augmentations that are pure functions of (id, view, seed)."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from clip_distill.pixels.views import AUGMENTATIONS, Views, normalise, view_seed

SIZES = [(48, 40), (40, 48), (33, 97), (32, 32), (5, 3)]
RANDOM = sorted(AUGMENTATIONS.keys() - {"none"})


def preprocess(size: int = 32, mode: str = "shortest", interpolation: str = "bicubic") -> dict[str, Any]:
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    return {"size": size, "mean": mean, "std": std, "interpolation": interpolation, "resize_mode": mode}


def photo(width: int = 120, height: int = 90) -> Image.Image:
    """Soft shapes and fine noise, so that crops differ and resizing matters."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / 9 + phase) * np.cos(y / 13 - phase) for phase in (0, 1, 2)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", SIZES)
def test_view_0_is_open_clips_own_preprocessing(size: tuple[int, int], mode: str, interpolation: str) -> None:
    cfg = preprocess(32, mode, interpolation)
    expected = image_transform_v2(PreprocessCfg(**cfg), is_train=False)(photo(*size))
    for augment in AUGMENTATIONS:
        view = Views(cfg, augment, seed=7)(photo(*size), "id", 0)
        assert (view.dtype, view.shape) == (torch.uint8, (3, 32, 32))
        assert torch.equal(normalise(view[None], cfg)[0], expected)


def test_normalised_pixels_are_float32_and_channels_last() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    out = normalise(pixels, preprocess())
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert float(out[1, 2, 3, 4]) == pytest.approx((int(pixels[1, 2, 3, 4]) / 255 - 0.3) / 0.6, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_every_augmentation_takes_every_size(augment: str, size: tuple[int, int]) -> None:
    for view in range(4):
        pixels = Views(preprocess(), augment)(photo(*size), "a", view)
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 32, 32))


@pytest.mark.parametrize("augment", RANDOM)
def test_a_view_depends_on_id_view_and_seed_alone(augment: str) -> None:
    keys = [(id, view, seed) for id in ("a", "b") for view in (1, 2) for seed in (0, 1)]

    def render(key: tuple[str, int, int]) -> Tensor:
        id, view, seed = key
        return Views(preprocess(), augment, seed)(photo(), id, view)

    forward = [render(key) for key in keys]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    backward = [render(key) for key in reversed(keys)][::-1]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, forward, backward))
    assert len({view.numpy().tobytes() for view in forward}) == len(keys)


def test_none_has_one_view_only() -> None:
    views = Views(preprocess(), "none")
    assert torch.equal(views(photo(), "a", 3), views(photo(), "b", 0))


def test_the_seed_of_a_view_is_fixed_for_good() -> None:
    """Stores outlive releases: these numbers may never change."""
    assert view_seed("image/一.jpg", 3, 5) == 8501003233769343581
    assert 0 <= view_seed("", 0, 0) < 2**63


def test_another_process_renders_the_same_pixels(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    code = (
        "import hashlib, sys; from PIL import Image; from clip_distill.pixels.views import Views\n"
        f"image = Image.open(sys.argv[1]); cfg = {preprocess()!r}\n"
        "digest = hashlib.sha256()\n"
        f"for augment in {RANDOM!r}: digest.update(Views(cfg, augment, 3)(image, 'é', 2).numpy().tobytes())\n"
        "print(digest.hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "photo.png")]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256()
    for augment in RANDOM:
        here.update(Views(preprocess(), augment, 3)(photo(), "é", 2).numpy().tobytes())
    assert here.hexdigest() == there


@pytest.mark.parametrize("augment", ["crop_flip", "crop_flip_color", "original"])
def test_another_resolution_shows_the_same_crop(augment: str) -> None:
    """A student may see fewer pixels than its teacher, but of the same part of the photo."""
    small, large = Views(preprocess(32), augment, 1), Views(preprocess(96), augment, 1)
    for view in range(1, 6):
        shrunk = interpolate(large(photo(), "a", view)[None].float(), size=32, mode="area")[0]
        same, other = small(photo(), "a", view).float(), small(photo(), "a", view + 1).float()
        assert correlation(shrunk, same) > 0.95
        assert correlation(shrunk, same) > correlation(shrunk, other) + 0.1


def test_an_augmentation_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_augmentation.py").write_text(
        "from torchvision.transforms import v2\n\n"
        "def upside_down(plain, size, interpolation):\n    return v2.Compose([plain, v2.RandomVerticalFlip(p=1)])\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    views = Views(preprocess(), "own_augmentation:upside_down")
    assert torch.equal(views(photo(), "a", 1), views(photo(), "a", 0).flip(1))


def test_an_unknown_augmentation_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'flip': expected one of crop_flip,"):
        Views(preprocess(), "flip")


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_views_may_be_sent_to_a_worker_that_is_spawned(augment: str) -> None:
    views = Views({"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}, augment, seed=3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    sent = pickle.loads(pickle.dumps(views))
    assert all(torch.equal(sent(image, "a", view), views(image, "a", view)) for view in range(3))
