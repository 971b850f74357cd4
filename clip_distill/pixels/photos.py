"""One photo from a file, a URL or a tar shard, as open_clip would decode it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from functools import cached_property

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile

from clip_distill.pixels.deep import is_deep, to_eight_bits
from clip_distill.system import at_work
from clip_distill.system.errors import InvalidValue
from clip_distill.system.paths import is_url, read_bytes

_AVIF = features.check("avif")
HEIF_EXTENSIONS = frozenset([".heic", ".heif", ".hif"])
try:  # the extra `heif`
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    _HEIF = True
except ImportError:
    _HEIF = False
IMAGE_EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"] + ([".avif"] if _AVIF else [])
) | (HEIF_EXTENSIONS if _HEIF else frozenset())
RAW_EXTENSIONS = frozenset([".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf", ".pef", ".srw", ".raw"])
# Pillow goes by content, not by name. Its other formats stay off: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF") + (("AVIF",) if _AVIF else ()) + (("HEIF",) if _HEIF else ())

# Palettes with transparency, odd metadata and photos over 89 megapixels all decode; one warning a file would be spam.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # an editor may write its whole history into one


# EXIF orientation → what brings the photo upright (EXIF 3.0, tag 274); 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset([5, 6, 7, 8])  # those that swap width and height


class BadImage(InvalidValue):
    """A photo that can't be used; `reason` is short and the same for all photos of its kind, to be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_image(path: str, offset: int = -1, size: int = -1) -> Image.Image:
    """Read and decode one photo, the first frame of an animation, as RGB.

    The pixels are those of open_clip's own preprocessing: `Image.open(…).convert("RGB")`, so alpha is dropped rather
    than blended and EXIF orientation is left alone. A HEIC photo's rotation is a part of its format, and is applied.

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
    at_work.at(path)
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
    """Bytes of a photo as it is encoded, without reading it; None for a file that is missing or behind a URL, of which
    `system.paths.listed_sizes` knows."""
    if offset >= 0:
        return size
    try:
        return None if is_url(path) else os.stat(path).st_size
    except OSError:
        return None


class Photo:
    """An encoded photo, decoded once for each scale that its views ask for.

    libjpeg decodes at a half, a quarter or an eighth of a side for a fraction of the time; other formats know no scale.

    Args:
        content: The file, or the tar's member.

    Attributes:
        size: (width, height) of the whole photo.
        format: As Pillow calls it.

    Raises:
        BadImage: "not an image" or "too large".
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._opened: ImageFile | None = self._open()
        self._decoded: dict[int, tuple[Image.Image, int]] = {}
        self.size, self.format = self._opened.size, self._opened.format

    def decode(self, scale: int = 1) -> tuple[Image.Image, int]:
        """RGB pixels, a side `scale` (1, 2, 4 or 8) times shorter, rounded up; and the scale that they have in the end.

        Raises:
            BadImage: "truncated", "damaged" or "too large".
        """
        if scale not in self._decoded:
            self._decoded[scale] = self._decode(scale)
        return self._decoded[scale]

    def exif(self) -> Image.Exif:
        """Its EXIF, which is empty where there is none, or none that can be read."""
        with contextlib.suppress(Exception):  # broken EXIF raises whatever its reader trips over
            return (self._opened or self._open()).getexif()
        return Image.Exif()

    @cached_property
    def _orientation(self) -> int:
        """1 to 8, as EXIF has it; read once, since every view asks for it."""
        # of a TIFF Pillow itself turns the pixels, and of a HEIC photo its decoder
        found = None if self.format in ("TIFF", "HEIF") else self.exif().get(ExifTags.Base.Orientation)
        return found if found in TURNS else 1

    def upright(self) -> Photo:
        """This photo as its EXIF orientation says that it is to be seen."""
        return self if self._orientation == 1 else Upright(self, self._orientation)

    def _open(self) -> ImageFile:
        with reasons():
            return Image.open(io.BytesIO(self._content), formats=FORMATS)

    def _decode(self, scale: int) -> tuple[Image.Image, int]:
        image, self._opened = self._opened or self._open(), None
        with reasons(), image:
            if is_deep(image):
                return to_eight_bits(image), 1
            reached = 1
            if scale > 1 and (drafted := image.draft(None, (image.width // scale, image.height // scale))):
                reached = round(self.size[0] / drafted[1][2])
            if image.mode == "RGB":
                image.load()
                return image, reached  # saves a copy of the pixels
            return image.convert("RGB"), reached


class Upright(Photo):
    """A photo whose pixels are turned once they are decoded, at any scale.

    Args:
        photo: As it lies in its file.
        orientation: Its EXIF orientation, 2 to 8.
    """

    def __init__(self, photo: Photo, orientation: int) -> None:
        self._lying, self._turn = photo, TURNS[orientation]
        self.size = photo.size[::-1] if orientation in SIDEWAYS else photo.size
        self.format = photo.format

    def decode(self, scale: int = 1) -> tuple[Image.Image, int]:
        image, reached = self._lying.decode(scale)
        return image.transpose(self._turn), reached

    def exif(self) -> Image.Exif:
        return self._lying.exif()

    def upright(self) -> Photo:
        return self


def decode(content: bytes) -> Image.Image:
    """Decode one photo as RGB, as `read_image` does.

    Raises:
        BadImage: "not an image", "truncated", "damaged" or "too large".
    """
    return Photo(content).decode()[0]


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Whatever decoding a photo, or bringing it to size, raises, as a BadImage."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise BadImage("too large") from error
    except Exception as error:  # decoders of broken files raise whatever they trip over, SyntaxError too
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise BadImage("truncated" if cut else "damaged") from error
