from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_distill.pixels.photos import BadImage, Photo, read_image

RED = (255, 0, 0)


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def read_pixels(path: Path | str, offset: int = -1, size: int = -1) -> NDArray[np.uint8]:
    return np.asarray(read_image(str(path), offset, size))


def reason_of(path: Path, offset: int = -1, size: int = -1) -> str:
    with pytest.raises(BadImage) as error:
        read_image(str(path), offset, size)
    return error.value.reason


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "PNG"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    noise().save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_pixels(tmp_path / f"a.{suffix}"), np.asarray(noise()))


def test_a_heic_photo_stands_upright(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    halves = np.zeros((32, 48, 3), np.uint8)
    halves[:, :24, 0] = 255  # red on the left
    photo = Image.fromarray(halves)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    pillow_heif.from_pillow(photo).save(tmp_path / "a.heic", quality=95)
    pillow_heif.from_pillow(photo).save(tmp_path / "turned.heic", quality=95, exif=exif.tobytes())
    plain, turned = (np.asarray(read_image(str(tmp_path / name))) for name in ("a.heic", "turned.heic"))
    assert plain.shape == (32, 48, 3) and np.abs(plain.astype(int) - halves).mean() < 8
    assert turned.shape == (48, 32, 3) and turned[:20, :, 0].mean() > 200 > 60 > turned[28:, :, 0].mean()


@pytest.mark.parametrize("orientation", range(10))
def test_upright_is_what_pillow_makes_of_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    noise((640, 480)).save(file, "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(file))
    photo = Photo(file.getvalue()).upright()
    assert photo.size == expected.size and np.array_equal(np.asarray(photo.decode()[0]), np.asarray(expected))
    small, scale = photo.decode(4)
    assert scale == 4 and small.size == tuple(side // 4 for side in expected.size)
    assert photo.upright() is photo


def test_a_jpeg_has_the_pixels_that_open_clip_sees(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as expected:
        assert np.array_equal(read_pixels(tmp_path / "a.jpg"), np.asarray(expected.convert("RGB")))


def test_every_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), RED)
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("RGBA").save(tmp_path / "alpha.png")
    red.convert("P").save(tmp_path / "palette.gif")
    red.save(tmp_path / "red.webp", lossless=True)
    for name in ("cmyk.jpg", "alpha.png", "palette.gif", "red.webp"):
        image = read_image(str(tmp_path / name))
        assert image.mode == "RGB" and image.size == (8, 8)
        assert np.abs(np.asarray(image, int) - RED).max() <= 2, name
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert read_image(str(tmp_path / "grey.png")).getpixel((3, 3)) == (77, 77, 77)
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "grey16.png")
    assert read_image(str(tmp_path / "grey16.png")).mode == "RGB"


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert read_image(str(tmp_path / "clear.png")).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    red, _, blue = read_pixels(tmp_path / f"a.{suffix}")[4, 4]
    assert red > 200 and blue < 50


def test_odd_but_good_images_do_not_warn(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    # pytest sets its own warning filters, so a plain interpreter has to show it
    code = (
        f"from clip_distill.pixels.photos import read_image; print(read_image({str(tmp_path / 'palette.png')!r}).mode)"
    )
    found = subprocess.run([sys.executable, "-W", "always::UserWarning", "-c", code], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("RGB\n", "")


def test_broken_files_say_what_is_wrong(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp", "gif", "tiff", "bmp"):
        noise().save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
        assert reason_of(tmp_path / f"cut.{suffix}") in ("truncated", "damaged"), suffix
    assert reason_of(tmp_path / "cut.jpg") == "truncated"
    (tmp_path / "text.jpg").write_text("<html>404 Not Found</html>")
    assert reason_of(tmp_path / "text.jpg") == "not an image"
    (tmp_path / "empty.jpg").touch()
    assert reason_of(tmp_path / "empty.jpg") == "empty file"
    assert reason_of(tmp_path / "absent.jpg") == "missing file"


def test_postscript_called_jpg_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert reason_of(tmp_path / "a.jpg") == "not an image"


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    assert reason_of(tmp_path / "bomb.png") == "too large"


def test_a_range_of_a_file_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    content = buffer.getvalue()
    (tmp_path / "shard.tar").write_bytes(b"x" * 512 + content + b"y" * 100)
    assert np.array_equal(read_pixels(tmp_path / "shard.tar", 512, len(content)), np.asarray(noise()))
    assert reason_of(tmp_path / "shard.tar", 512, len(content) + 200) == "truncated"


def test_urls_are_read_whole_and_in_part() -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    content = buffer.getvalue()
    with fsspec.open("memory://test-images/狗.png", "wb") as file:
        file.write(content)
    with fsspec.open("memory://test-images/shard.tar", "wb") as file:
        file.write(b"x" * 7 + content + b"y")
    assert np.array_equal(read_pixels("memory://test-images/狗.png"), np.asarray(noise()))
    assert np.array_equal(read_pixels("memory://test-images/shard.tar", 7, len(content)), np.asarray(noise()))
    with pytest.raises(BadImage, match="missing file"):
        read_image("memory://test-images/absent.png")


def test_a_bad_image_survives_the_way_back_from_a_worker() -> None:
    assert pickle.loads(pickle.dumps(BadImage("truncated"))).reason == "truncated"
