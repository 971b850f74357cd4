"""A model that encodes images, texts or both, with the habits of sentence-transformers.

Shapes: N inputs, M others, B batch, D embedding, S image side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_distill.model.encoder import Encoder, Floats
from clip_distill.model.photo import Photograph, is_one_array, render
from clip_distill.pixels.photos import BadImage
from clip_distill.pixels.plain import plain_view
from clip_distill.system.cores import cores
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import progress

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Model:
    """Encodes what its towers read; `load` makes one.

    Args:
        encoders: Tower ("image", "text") → what runs it.
        name: Where it came from, for errors.
    """

    def __init__(self, encoders: Mapping[str, Encoder], name: str) -> None:
        self._encoders, self.name = dict(encoders), name

    def __repr__(self) -> str:
        return f"<Model {self.name}: {' and '.join(self.towers)}, {self.embed_dim} numbers>"

    @property
    def towers(self) -> tuple[str, ...]:
        """Of "image" and "text", those that it has."""
        return tuple(self._encoders)

    @property
    def embed_dim(self) -> int:
        """D, numbers of an embedding."""
        return next(iter(self._encoders.values())).embed_dim

    @property
    def teacher(self) -> str | None:
        """The name of the teacher whose embedding space it is; None where nothing says so."""
        known = [encoder.teacher for encoder in self._encoders.values() if encoder.teacher]
        return str(known[0]["name"]) if known else None

    def encode_text(
        self,
        sentences: str | Sequence[str],
        *,
        batch_size: int = 64,
        normalize: bool = True,
        device: str | None = None,
        progress: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
            sentences: One text, or N.
            batch_size: Texts per forward pass; short ones go first, in batches of like length.
            normalize: To unit length.
            device: Where it runs; by default where it was loaded to.
            progress: A bar: by default for what takes over two seconds, on a terminal.
            convert_to_tensor: A torch tensor instead of a numpy array.

        Returns:
            float32 [N, D]; [D] for one text that is not in a list.

        Raises:
            InvalidValue: There is no text tower, or something is no string.

        Example:
            >>> model = cd.load(TEACHER)
            >>> model.encode_text("a red circle").shape, model.encode_text(["a dog", "一只狗"]).shape
            ((32,), (2, 32))
        """
        encoder = self.encoder("text")
        one = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if strange := [type(text).__name__ for text in texts if not isinstance(text, str)]:
            raise InvalidValue(f"encode_text: expected strings, found {strange[0]}")
        rows = [encoder.texts(part, batch_size, device) for part in _parts(texts, 16 * batch_size, "texts", progress)]
        return _finish(rows, encoder.embed_dim, normalize, convert_to_tensor, one)

    @overload
    def encode_image(
        self,
        images: Photograph | Sequence[Photograph],
        *,
        batch_size: int = ...,
        normalize: bool = ...,
        device: str | None = ...,
        progress: bool | None = ...,
        convert_to_tensor: bool = ...,
        on_error: Literal["raise"] = ...,
    ) -> Any: ...

    @overload
    def encode_image(
        self,
        images: Photograph | Sequence[Photograph],
        *,
        batch_size: int = ...,
        normalize: bool = ...,
        device: str | None = ...,
        progress: bool | None = ...,
        convert_to_tensor: bool = ...,
        on_error: Literal["skip"],
    ) -> tuple[Any, list[int]]: ...

    def encode_image(
        self,
        images: Photograph | Sequence[Photograph],
        *,
        batch_size: int = 64,
        normalize: bool = True,
        device: str | None = None,
        progress: bool | None = None,
        convert_to_tensor: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Any:
        """Embed photos, by the very pixels that the student was trained on.

        Args:
            images: One photo, or N: paths or URLs, Pillow's images, uint8 arrays [height, width, 3], encoded bytes.
                EXIF orientation counts only for a student whose store was made with `embed --exif true`; transparency
                is dropped.
            batch_size: Photos per forward pass.
            normalize: To unit length.
            device: Where it runs; by default where it was loaded to.
            progress: A bar: by default for what takes over two seconds, on a terminal.
            convert_to_tensor: A torch tensor instead of a numpy array.
            on_error: What a photo that can't be read does: raise, or be skipped.

        Returns:
            float32 [N, D]; [D] for one photo that is not in a list. With `on_error="skip"` a pair: the embeddings of
            the photos that could be read, and the row of each among `images`.

        Raises:
            BadImage: A photo can't be read; the message names it.
            InvalidValue: There is no image tower, or something is no photo.

        Example:
            >>> model = cd.load(TEACHER)
            >>> embeddings, rows = model.encode_image([PHOTO, b"no photo", PHOTO], on_error="skip")
            >>> embeddings.shape, rows
            ((2, 32), [0, 2])
        """
        encoder = self.encoder("image")
        if on_error not in ("raise", "skip"):
            raise InvalidValue(f"on_error: expected raise or skip, found {on_error!r}")
        one = isinstance(images, str | os.PathLike | Image.Image | bytes) or is_one_array(images)
        photos: list[Any] = [images] if one else list(images)  # type: ignore[arg-type]
        view = plain_view(encoder.preprocess)
        rows, blocks = [], []
        with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes outside of Python's lock
            batches = _parts(list(enumerate(photos)), batch_size, "photos", progress)
            for batch, found in _ahead(pool, lambda item: render(view, item[1]), batches):
                good = []
                for (row, _), pixels in zip(batch, found, strict=True):
                    if not isinstance(pixels, BadImage):
                        rows.append(row)
                        good.append(pixels)
                    elif on_error == "raise":
                        raise BadImage(f"{_name(photos[row], row)}: {pixels.reason}") from pixels
                if good:
                    blocks.append(encoder.images(good, device))
        embeddings = _finish(blocks, encoder.embed_dim, normalize, convert_to_tensor, one and len(rows) == 1)
        return (embeddings, rows) if on_error == "skip" else embeddings

    def similarity(self, first: Any, second: Any) -> Any:
        """Cosines of every row of one set of embeddings with every row of another.

        Args:
            first: [N, D], or [D]; numpy or torch.
            second: [M, D], or [D].

        Returns:
            [N, M], float32, of the kind of `first`.

        Raises:
            InvalidValue: They are of different widths.

        Example:
            >>> model = cd.load(TEACHER)
            >>> texts = model.encode_text(["a red circle", "a red circle", "a blue bar"])
            >>> model.similarity(texts, model.encode_image(PHOTO)).shape
            (3, 1)
        """
        left, right = (unit(np.atleast_2d(_array(each))) for each in (first, second))
        if left.shape[1] != right.shape[1]:
            raise InvalidValue(f"similarity: expected one width, found {left.shape[1]} and {right.shape[1]}")
        cosines = left @ right.T
        return cosines if isinstance(first, np.ndarray | list) else _tensor(cosines)

    def encoder(self, tower: str) -> Encoder:
        """What runs one tower.

        Raises:
            InvalidValue: It has no such tower.
        """
        if tower not in self._encoders:
            raise InvalidValue(
                f"{self.name}: expected a model with the {tower} tower, found {', '.join(self.towers)} alone. Load "
                "both: load(image=…, text=…), where a teacher's name serves as well"
            )
        return self._encoders[tower]


def _parts(items: Sequence[T], size: int, what: str, shown: bool | None) -> Iterator[Sequence[T]]:
    """The items, so many at a time, with a bar."""
    if size < 1:
        raise InvalidValue(f"batch_size: expected 1 or more, found {size}")
    options: dict[str, Any] = {"disable": True} if shown is False else {"delay": 0} if shown else {}
    with progress(total=len(items), desc=what, unit=f" {what}", **options) as bar:
        for start in range(0, len(items), size):
            yield items[start : start + size]
            bar.update(min(size, len(items) - start))


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], batches: Iterator[Sequence[Any]]
) -> Iterator[tuple[Sequence[Any], list[Any]]]:
    """Each batch and what came of its items; the next batch is worked on meanwhile."""
    waiting = [(batch, pool.map(work, batch)) for batch in islice(batches, 1)]
    while waiting:
        batch, results = waiting.pop()
        waiting += [(following, pool.map(work, following)) for following in islice(batches, 1)]
        yield batch, list(results)


def _name(photo: Any, row: int) -> str:
    return os.fspath(photo) if isinstance(photo, str | os.PathLike) else f"photo {row}"


def _finish(blocks: Sequence[Floats], width: int, normalize: bool, convert_to_tensor: bool, one: bool) -> Any:
    embeddings = np.concatenate(blocks) if blocks else np.empty((0, width), np.float32)
    embeddings = unit(embeddings) if normalize else embeddings
    result = embeddings[0] if one else embeddings
    return _tensor(result) if convert_to_tensor else result


def unit(embeddings: NDArray[Any]) -> Floats:
    """Rows of unit length; a row of zeros stays."""
    wide = embeddings.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.maximum(lengths, 1e-12)).astype(np.float32)


def _array(embeddings: Any) -> NDArray[Any]:
    return np.asarray(embeddings.detach().cpu() if hasattr(embeddings, "detach") else embeddings)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    import torch

    return torch.from_numpy(array)
