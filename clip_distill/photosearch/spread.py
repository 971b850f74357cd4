"""Photos read and embedded by a Ray cluster's workers; the index itself is written here.

Shapes: D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from clip_distill.model.encoder import Encoder
from clip_distill.photosearch.index import Facts, File, Floats
from clip_distill.photosearch.narrow import Narrow
from clip_distill.photosearch.update import Embedded, Unread, embedded
from clip_distill.system.ray_tasks import cluster, each_as_ended

SHARD = 512  # photos of a task


def over_ray(image: str, device: str, address: str | None) -> Embedded:
    """What `update` embeds photos by.

    Args:
        image: The image tower's place, or a teacher's name: the same on every machine, as the photos' paths are.
        device: Where workers run it.
        address: Of the cluster.
    """

    def spread(files: Sequence[File], encoder: Encoder) -> Iterator[tuple[list[tuple[Facts, Floats]], list[Unread]]]:
        shards = [
            (image, device, files[start : start + SHARD], encoder.preprocess) for start in range(0, len(files), SHARD)
        ]
        with cluster(address):
            for good, bad in each_as_ended(embed_shard, shards):
                # workers know the model alone
                yield encoder.of(good) if isinstance(encoder, Narrow) else good, bad

    return spread


def embed_shard(
    image: str, device: str, files: Sequence[File], preprocess: dict[str, Any]
) -> tuple[list[tuple[Facts, Floats]], list[Unread]]:
    """One task: facts and vectors [D] of some photos, and what can't be read."""
    good: list[tuple[Facts, Floats]] = []
    bad: list[Unread] = []
    encoder = loaded(image, device)
    encoder.preprocess = preprocess
    for some, others in embedded(files, encoder):
        good += some
        bad += others
    return good, bad


@lru_cache(1)
def loaded(image: str, device: str) -> Encoder:
    """The image tower, once a worker."""
    from clip_distill.model.load import load

    return load(image=image, device=device).encoder("image")
