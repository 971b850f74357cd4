"""Photos that are hard to read: strips, more than 8 bits, broken and odd files; each is used, or skipped and named."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from clip_distill.corpus.files import images_of
from clip_distill.corpus.layout import IMAGES_SCHEMA, _to_table
from clip_distill.corpus.report import Skips
from clip_distill.pixels import plain
from clip_distill.pixels.photos import Photo, decode
from clip_distill.pixels.plain import plain_view
from clip_distill.pixels.views import Views
from clip_distill.store.embed import ImageViews, join
from clip_distill.system.allocator import forget_peak, most_resident_bytes

CFG = {"size": 32, "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
CFG |= {"resize_mode": "shortest", "fill_color": 0}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (32, 24)])
@pytest.mark.parametrize("shape", [(400, 40), (37, 401), (40, 40), (333, 65)])
def test_to_crop_before_resizing_gives_the_same_pixels(
    shape: tuple[int, int], size: int | tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, cfg = noise(*shape), CFG | {"size": size, "resize_mode": mode}
    whole = np.asarray(plain_view(cfg)(photo)).astype(int)
    monkeypatch.setattr(plain, "LONG", 0.5)
    cut = np.asarray(plain_view(cfg)(photo)).astype(int)
    assert np.abs(whole - cut).max() <= 1  # of 255, where a weight's last bit rounds otherwise
    assert (whole != cut).mean() < 0.001


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 60_000)])
@pytest.mark.parametrize("mode", ["shortest", "longest"])
def test_a_strip_takes_little_memory(shape: tuple[int, int], mode: str) -> None:
    content = encoded(noise(*shape))
    forget_peak()
    before = most_resident_bytes()
    views = Views(CFG | {"size": 224, "resize_mode": mode}, "crop_flip")
    for view in range(3):
        assert views(Photo(content), "strip", view).shape == (3, 224, 224)
    assert most_resident_bytes() - before < 100e6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_as_8_bits_are(kind: str) -> None:
    gradient = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    deep = decode(encoded(Image.fromarray(gradient.astype(np.uint16)), kind))
    plain_bits = np.rint(gradient / 257).astype(int)
    assert np.abs(np.asarray(deep)[..., 0] - plain_bits).max() <= 1


def test_floats_go_from_0_to_1_or_over_their_own_range_or_that_of_the_tags() -> None:
    gradient = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    expected = np.rint(gradient * 255).astype(int)
    for numbers, tags in ((gradient, {}), (gradient * 900 - 300, {}), (gradient * 0.5, {340: 0.0, 341: 0.5})):
        content = encoded(Image.fromarray(numbers), "TIFF", tiffinfo=tags)
        assert np.abs(np.asarray(decode(content))[..., 1].astype(int) - expected).max() <= 1


def test_numbers_of_32_bits_are_scaled_by_their_type() -> None:
    numbers = np.linspace(-(2**31), 2**31 - 1, 64, dtype=np.int32).reshape(8, 8)
    found = np.asarray(decode(encoded(Image.fromarray(numbers), "TIFF", tiffinfo={339: 2})))[..., 0]
    assert np.abs(found.ravel() - np.linspace(0, 255, 64)).max() <= 1


def test_a_png_with_a_long_text_is_read() -> None:
    facts = PngImagePlugin.PngInfo()
    facts.add_text("history", "x" * 3_000_000, zip=True)
    assert decode(encoded(noise(20, 20), pnginfo=facts)).size == (20, 20)


def odd_files(folder: Path, rng: random.Random) -> None:
    """Some 250 files that end in an image's extension."""
    good = {kind: encoded(noise(40, 30), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")}
    for kind, content in good.items():
        for number in range(12):
            (folder / f"cut-{number}.{kind.lower()}").write_bytes(content[: rng.randrange(len(content))])
            flipped = bytearray(content)
            for _ in range(1 + number):
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (folder / f"flipped-{number}.{kind.lower()}").write_bytes(flipped)
            junk = content[:20] + rng.randbytes(200)
            (folder / f"junk-{number}.{kind.lower()}").write_bytes(junk)
        (folder / f"misnamed-{kind}.jpg").write_bytes(content)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"):
        image = Image.new(mode, (20, 30)) if mode in ("I;16", "I", "F") else noise(20, 30).convert(mode, None)
        (folder / f"mode-{mode.replace(';', '')}.tiff").write_bytes(encoded(image, "TIFF"))
    for shape in ((1, 1), (1, 3000), (3000, 1), (2, 2), (5000, 7)):
        (folder / f"{shape[0]}x{shape[1]}.png").write_bytes(encoded(noise(*shape)))
    frames = [noise(20, 20), noise(20, 20)]
    for kind in ("GIF", "WEBP", "PNG"):
        (folder / f"moving.{kind.lower()}").write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames))
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "photo.jfif").write_bytes(good["JPEG"])
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "broken.jpg").symlink_to(folder / "nothing.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "later.jpg").write_bytes(good["JPEG"])


def test_of_odd_files_each_is_used_or_skipped_with_a_reason(tmp_path: Path) -> None:
    odd_files(tmp_path, random.Random(0))
    files, skips = sorted(os.listdir(tmp_path)), Skips()
    table = _to_table(images_of(str(tmp_path), False, skips), IMAGES_SCHEMA)
    (tmp_path / "later.jpg").unlink()  # between listing and reading
    views = ImageViews(table, Views(CFG, "crop_flip"), 3)
    found = join([views[row] for row in range(len(views))])
    assert len(files) == len(found.sources) + len(found.skipped) + sum(skips.counts.values())
    assert len(files) > 230
    assert found.skipped[f"{tmp_path.name}/later.jpg"] == "missing file"
    assert found.skipped[f"{tmp_path.name}/empty.jpg"] == "empty file"
    reasons = {"missing file", "empty file", "not an image", "truncated", "damaged", "too large"}
    assert set(found.skipped.values()) <= reasons
    assert f"{tmp_path.name}/photo.jfif" in {source.id for source in found.sources}
    assert skips.counts["broken link"] == 2
    assert skips.counts["not a file, but a pipe, a socket or a device"] == 1
