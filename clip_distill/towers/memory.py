"""A GPU whose memory is not enough: the batch that fits is found by trying, and told."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import Any

import torch

from clip_distill.system.errors import OutOfMemory


def fits_on_cuda(run: Callable[[int], Any], size: int) -> bool:
    """Whether `run` can do a batch of this size without running out of memory."""
    try:
        run(size)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold what the batch has taken
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def largest_below(run: Callable[[int], Any], size: int) -> int:
    """The largest of size/2, size/4, … that fits; 0 where not even one sample does."""
    while size > 1:
        size //= 2
        if fits_on_cuda(run, size):
            return size
    return 0


def explained(
    error: torch.OutOfMemoryError, device: torch.device, flag: str, size: int, run: Callable[[int], Any], fix: str
) -> OutOfMemory:
    """An error that says what ran out, and which batch fits.

    Args:
        error: Torch's own; what its frames hold is given back first.
        device: Whose memory it was.
        flag: The option that says how large a batch is.
        size: Its value.
        run: Does what failed, with a batch of a given size.
        fix: What else to try, a sentence.
    """
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch.cuda.empty_cache()
    card = f"{device}"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        card += f", {torch.cuda.get_device_name(device)} with {total / 2**30:.1f} GiB,"
    fitting = largest_below(run, size)
    found = f"{flag} {fitting} fits, as was just tried" if fitting else "not even one sample fits"
    return OutOfMemory(f"{card} ran out of memory at {flag} {size}: {found}. {fix}")
