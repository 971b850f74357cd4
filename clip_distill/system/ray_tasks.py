"""Tasks on a Ray cluster, which starts one again whose worker died."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clip_distill.system.errors import MissingPackage

RETRIES = 3  # of a task whose worker is gone


@contextmanager
def cluster(address: str | None) -> Iterator[int]:
    """Connect to a cluster, or start one of this machine; how many tasks it runs at once.

    Args:
        address: auto for the one that this machine belongs to, ray://HOST:PORT, or None for this machine alone.

    Raises:
        MissingPackage: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackage("--engine ray needs Ray: pip install 'clip-distill[ray]', on every machine") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, include_dashboard=False, log_to_driver=True)
    try:
        has = ray.cluster_resources()
        yield max(1, int(has.get("GPU", 0) or has.get("CPU", 1)))
    finally:
        if ours:
            ray.shutdown()


def each_as_ended(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """What a task of each set of arguments returns, in the order in which they end.

    Args:
        work: A function of a module that every machine has.
        arguments: Of each task.
    """
    import ray

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(work)
    waiting = [task.remote(*each) for each in arguments]
    while waiting:
        ended, waiting = ray.wait(waiting)
        yield from ray.get(ended)
