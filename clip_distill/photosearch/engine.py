"""A model and an index together: words, a photo, or both, answered with photos.

Shapes: D embedding, K answers.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL import Image

from clip_distill.model.model import Model
from clip_distill.photosearch.index import Floats, Index
from clip_distill.photosearch.library import Answer, Filter, Library
from clip_distill.photosearch.question import combined, terms_of
from clip_distill.photosearch.update import Embedded, Progress, update
from clip_distill.pixels.photos import BadImage, Photo, read_bytes_of
from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.system.files import only_one

THUMB = 320  # pixels of the longer side, at most
MOST_PIXELS = 50_000_000  # of an uploaded photo


@dataclass
class Engine:
    """What the server and the terminal ask.

    Args:
        model: Both towers.
        index: The photos.
        folders: Where they lie.
        score: From which on an answer to words is a good match; None where nobody calibrated it.
        embed: What reads and embeds photos; by default this process.
        beside: The teacher over the same photos, whose order can be asked for, too.
    """

    model: Model
    index: Index
    folders: Sequence[str]
    score: float | None = None
    embed: Embedded | None = None
    beside: Engine | None = None
    state: Progress = field(default_factory=Progress)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.library = Library(self.index)
        self._words = lru_cache(4096)(self._encoded)

    def _encoded(self, words: str) -> Floats:
        vector: Floats = self.model.encode_text(words, progress=False)
        return vector

    def bring_up_to_date(self) -> Progress:
        """Index what is new, and forget what is gone; photos are found as soon as they are in.

        Raises:
            NotFound: A folder is not there.
        """
        changes, seen = 0, 0

        def kept() -> None:
            nonlocal changes, seen
            changes += 1
            if changes & (changes - 1) == 0:  # after 1, 2, 4 … batches: each reload reads everything
                self.library.reload()
                seen = changes

        try:
            with only_one(self.index.path.with_name(".lock"), str(self.index.path.parent)):
                encoder = self.model.encoder("image")
                return update(self.index, self.folders, encoder, self.state, self.stop, kept, self.embed)
        finally:
            if seen < changes:
                self.library.reload()

    def by_teacher(self, like: int | None = None, **asked: Any) -> list[dict[str, Any]]:
        """What `ask` gives, in the teacher's order and with its scores; photos keep their numbers in this index.

        Raises:
            NotFound: There is no index of the teacher's, or a photo is not in it.
        """
        if self.beside is None:
            raise NotFound("expected the teacher's index, found none: clip-distill search PHOTOS --beside TEACHER")
        numbers, others, theirs = self.library.numbers(), self.beside.library.numbers(), None
        if like is not None:
            path = self.index.path_of(like)
            theirs = others.get(path or "")
            if theirs is None:
                raise NotFound(f"expected a photo of both indexes, found none with id {like}")
        found = self.beside.ask(like=theirs, **asked)
        known = {their: numbers[path] for path, their in others.items() if path in numbers}
        return [
            each | {"id": known[each["id"]], "same": [known[same] for same in each["same"] if same in known]}
            for each in found
            if each["id"] in known
        ]

    def vector(self, question: str = "", photo: bytes | None = None, like: int | None = None) -> Floats:
        """[D] of what is asked: words with signs and weights, a photo's bytes, a photo of the index, or all together.

        Raises:
            InvalidValue: Nothing is asked, or it cancels itself.
            BadImage: The photo can't be read.
            NotFound: The index has no such photo.
        """
        terms = terms_of(question)
        vectors, weights = [self._words(term.words) for term in terms], [term.weight for term in terms]
        if photo is not None:
            vectors.append(self._seen(photo))
            weights.append(1.0)
        if like is not None:
            known = self.library.vector(like)
            if known is None:
                raise NotFound(f"expected a photo of the index, found none with id {like}")
            vectors.append(known)
            weights.append(1.0)
        if not vectors:
            raise InvalidValue("expected words, a photo, or both, found neither")
        return combined(vectors, weights)

    def _seen(self, content: bytes) -> Floats:
        """[D] of a photo that is not in the index."""
        photo = Photo(content)
        if photo.size[0] * photo.size[1] > MOST_PIXELS:
            raise BadImage("too large")
        vector: Floats = self.model.encode_image(content, progress=False)
        return vector

    def ask(
        self,
        question: str = "",
        photo: bytes | None = None,
        like: int | None = None,
        count: int = 10,
        first: int = 0,
        only: Filter = Filter(),  # noqa: B008 - frozen, so one instance serves all calls
        fold: bool = True,
    ) -> list[dict[str, Any]]:
        """The nearest photos as records: `path`, `score`, `id`, `taken`, `width`, `height`, `same`, and `good`: None
        where no score says what a good match is.

        Errors are those of `vector`.
        """
        answers = self.library.search(self.vector(question, photo, like), count, first, only, fold)
        words_alone = photo is None and like is None
        return [self._record(answer, words_alone) for answer in answers]

    def latest(self, count: int, first: int = 0, only: Filter = Filter()) -> list[dict[str, Any]]:  # noqa: B008
        """The photos taken last, as records of `ask`."""
        return [self._record(answer, False) for answer in self.library.latest(count, first, only)]

    def _record(self, answer: Answer, words_alone: bool) -> dict[str, Any]:
        good = answer.score >= self.score if self.score is not None and words_alone else None
        return {
            "path": answer.path,
            "score": round(answer.score, 6),
            "id": answer.id,
            "taken": answer.taken,
            "width": answer.width,
            "height": answer.height,
            "same": list(answer.same),
            "good": good,
        }

    def thumbnail(self, photo: int) -> bytes:
        """A photo of the index as a small upright JPEG, made once.

        Raises:
            NotFound: The index has no such photo.
            BadImage: It can't be read now.
        """
        if (kept := self.index.thumb(photo)) is not None:
            return kept
        path = self.index.path_of(photo)
        if path is None:
            raise NotFound(f"expected a photo of the index, found none with id {photo}")
        made = as_jpeg(read_bytes_of(path), THUMB, 80)
        self.index.keep_thumb(photo, made)
        return made

    @staticmethod
    def shown(path: str) -> bytes:
        """A photo as a large upright JPEG, for formats that browsers don't show.

        Raises:
            BadImage: It can't be read now.
        """
        return as_jpeg(read_bytes_of(path), 2048, 90)


def as_jpeg(content: bytes, longest: int, quality: int) -> bytes:
    """A photo as an upright JPEG, scaled down to so many pixels of its longer side.

    Raises:
        BadImage: It can't be read.
    """
    photo = Photo(content)
    scale = next((scale for scale in (8, 4, 2) if max(photo.size) >= scale * longest), 1)
    image = photo.upright().decode(scale)[0]
    image.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
