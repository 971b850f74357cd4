"""The data of a quickstart: a folder in the documented layout, photos and sentences by themselves, or none at all."""

from __future__ import annotations

from dataclasses import dataclass

from clip_distill.corpus.layout import Corpus, Sources, scan
from clip_distill.system.errors import NotFound


@dataclass(frozen=True)
class Material:
    """Where the data lies.

    Args:
        data: A folder in the documented layout.
        photos: What `--sources.train_images` takes, folders in folders included.
        texts: What `--sources.train_captions` takes.
        towers: Of which students are made, where the data has something for them.
        words: Whether a text student learns from made-up texts of the teacher's words, in place of data.
    """

    data: str | None = None
    photos: str | None = None
    texts: str | None = None
    words: bool = False
    towers: tuple[str, ...] = ("image", "text")

    def flags(self) -> tuple[str, ...]:
        """For the verbs that read the data."""
        if self.data is not None:
            return ("--data", self.data)
        photos = ("--sources.train_images", self.photos, "--sources.recursive", "true") if self.photos else ()
        return (*photos, *(("--sources.train_captions", self.texts) if self.texts else ()))

    def scan(self) -> Corpus:
        """Find the photos and captions.

        Raises:
            NotFound: There are neither to train on.
        """
        if self.words:
            return scan(None)
        recursive = self.photos is not None
        corpus = scan(self.data, Sources(train_images=self.photos, train_captions=self.texts, recursive=recursive))
        if self.texts is not None:
            corpus.train.require_captions()
        if self.photos is not None or self.texts is None:
            try:
                corpus.train.require_images()
            except NotFound:
                if self.data is None or not corpus.train.captions.num_rows:
                    raise
        return corpus
