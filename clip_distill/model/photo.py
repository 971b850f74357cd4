"""A photo in any form that people have it in → the plain view's pixels.

Shapes: S image side.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_distill.model.encoder import Pixels
from clip_distill.pixels.photos import BadImage, Photo, read_bytes_of
from clip_distill.pixels.plain import Resized, to_array
from clip_distill.system.errors import InvalidValue

Photograph = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | bytes


def render(view: Resized, photo: Any) -> Pixels | BadImage:
    """The plain view of a photo, uint8 [S, S, 3], or why it can't be read."""
    try:
        if isinstance(photo, str | os.PathLike):
            photo = Photo(read_bytes_of(os.fspath(photo)))
        elif isinstance(photo, bytes):
            photo = Photo(photo)
        elif isinstance(photo, np.ndarray):
            photo = Image.fromarray(_rgb(photo))
        elif isinstance(photo, Image.Image):
            photo = photo if photo.mode == "RGB" else photo.convert("RGB")
        else:
            raise InvalidValue(
                f"encode_image: expected a path, a Pillow image, a uint8 array or bytes, found {type(photo).__name__}"
            )
        return to_array(view(photo))
    except BadImage as error:
        return error


def _rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InvalidValue(
            f"encode_image: expected arrays of uint8 [height, width, 3], RGB, found {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array)


def is_one_array(images: Any) -> bool:
    return isinstance(images, np.ndarray) and images.ndim == 3
