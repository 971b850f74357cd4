"""One photo from a file, a URL or a tar shard, as open_clip would decode it."""

from __future__ import annotations

import hashlib
import io
import os
import warnings

from PIL import Image, UnidentifiedImageError, features

from clip_distill.data.paths import is_url, read_bytes

_AVIF = features.check("avif")
IMAGE_EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"] + ([".avif"] if _AVIF else [])
)
# Pillow goes by content, not by name. Its other formats stay off: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF") + (("AVIF",) if _AVIF else ())

# Palettes with transparency, odd metadata and photos over 89 megapixels all decode; one warning a file would be spam.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(ValueError):
    """A photo that can't be used; `reason` is short and the same for all photos of its kind, to be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_image(path: str, offset: int = -1, size: int = -1) -> Image.Image:
    """Read and decode one photo, the first frame of an animation, as RGB.

    The pixels are those of open_clip's own preprocessing: `Image.open(…).convert("RGB")`, so alpha is dropped rather
    than blended and EXIF orientation is left alone.

    Args:
        path: A file or an fsspec URL.
        offset: Where the photo starts in the file, in bytes; -1 takes the whole file.
        size: Its length in bytes when there is an offset.

    Raises:
        BadImage: "missing file", "no permission", "empty file", "not an image", "truncated", "damaged" or "too large"
            (over twice Pillow's `Image.MAX_IMAGE_PIXELS`, 179 megapixels). Other errors of the file system are raised
            as they are, since they say nothing about the photo.
    """
    return decode(read_bytes_of(path, offset, size))


def read_bytes_of(path: str, offset: int = -1, size: int = -1) -> bytes:
    """One photo as it is encoded, of a file or of a tar's member; the arguments and errors are `read_image`'s."""
    try:
        content = read_bytes(path, offset, size)
    except FileNotFoundError as error:
        raise BadImage("missing file") from error
    except PermissionError as error:
        raise BadImage("no permission") from error
    if not content:
        raise BadImage("empty file")
    if offset >= 0 and len(content) < size:
        raise BadImage("truncated")
    return content


def digest_of(content: bytes) -> int:
    """Which photo this is: the first 8 bytes of its encoded bytes' BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(content).digest()[:8], "little")


def size_of(path: str, offset: int = -1, size: int = -1) -> int | None:
    """Bytes of a photo as it is encoded, without reading it; None for a file that is missing or behind a URL."""
    if offset >= 0:
        return size
    try:
        return None if is_url(path) else os.stat(path).st_size
    except OSError:
        return None


def decode(content: bytes) -> Image.Image:
    """Decode one photo as RGB, as `read_image` does.

    Raises:
        BadImage: "not an image", "truncated", "damaged" or "too large".
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise BadImage("too large") from error
    except Exception as error:  # decoders of broken files raise whatever they trip over, SyntaxError too
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise BadImage("truncated" if cut else "damaged") from error
