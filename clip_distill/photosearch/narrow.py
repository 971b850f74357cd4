"""Fewer numbers a photo: a map that an index learns once, from a sample of its own photos.

Shapes: N photos, D the model's embedding, K the index's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from clip_distill.corpus.report import Skips
from clip_distill.model.encoder import Encoder, Floats, Pixels
from clip_distill.model.model import Model, unit
from clip_distill.photosearch.index import Facts, Index
from clip_distill.photosearch.update import Unread, embedded, found_files
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import progress, say
from clip_distill.towers.reduction import map_to, principal

SAMPLE = 2048  # photos that the map is learned from
PHOTOS_A_NUMBER = 2  # at least; with fewer, the last directions are those of single photos


class Narrow:
    """An encoder whose embeddings are K numbers wide.

    Args:
        encoder: Of D.
        map: [D, K].
    """

    def __init__(self, encoder: Encoder, map: Floats) -> None:
        self.encoder, self.map = encoder, map
        self.embed_dim, self.teacher, self.preprocess = map.shape[1], encoder.teacher, encoder.preprocess

    def images(self, pixels: Sequence[Pixels], device: str | None) -> Floats:
        return self.encoder.images(pixels, device) @ self.map

    def for_threads(self) -> Narrow | None:
        twin = self.encoder.for_threads()
        return None if twin is None else Narrow(twin, self.map)

    def texts(self, texts: Sequence[str], batch_size: int, device: str | None) -> Floats:
        return self.encoder.texts(texts, batch_size, device) @ self.map

    def of(self, photos: Sequence[tuple[Facts, Floats]]) -> list[tuple[Facts, Floats]]:
        """Photos whose vectors [D] the model gave, with vectors [K] of unit length."""
        return [(facts, unit(vector @ self.map)) for facts, vector in photos]


def narrowed(model: Model, index: Index, folders: Sequence[str]) -> Model:
    """The model as wide as the index is, by the index's map, which is learned where it has none yet.

    Errors are those of `learned`.
    """
    found = index.map()
    map = learned(index, folders, model.encoder("image")) if found is None else found
    encoders: Mapping[str, Encoder] = {tower: Narrow(model.encoder(tower), map) for tower in model.towers}
    return Model(encoders, model.name)


def learned(index: Index, folders: Sequence[str], encoder: Encoder) -> Floats:
    """[D, K]: the principal directions of photos drawn at random, which are then in the index, with the map.

    Raises:
        InvalidValue: There are too few photos to find K directions.
        NotFound: A folder is not there.
    """
    dim = index.dim
    files = list(found_files(folders, Skips()).values())
    sample = random.Random(0).sample(files, min(len(files), SAMPLE))
    good: list[tuple[Facts, Floats]] = []
    bad: list[Unread] = []
    with progress(total=len(sample), desc="directions", unit=" photos") as bar:
        for some, others in embedded(sample, encoder):
            good, bad = good + some, bad + others
            bar.update(len(some) + len(others))
    if len(good) < PHOTOS_A_NUMBER * dim:
        raise InvalidValue(
            f"--dim {dim}: expected {PHOTOS_A_NUMBER * dim:,} photos or more to learn from what {dim} numbers should "
            f"be, found {len(good):,} that can be read. Leave --dim out for few photos: they take little room"
        )
    rows = np.stack([vector for _, vector in good])
    # not about their mean: what photos have in common keeps cosines, by which near-duplicates are known, what they were
    map = index.keep_map(map_to(dim, principal(rows.T @ rows)))
    index.add(Narrow(encoder, map).of(good), [(each.file, each.reason) for each in bad])
    say(f"{len(good):,} photos added, from which the index learned what {dim} numbers are to be")
    return map
