"""The Hugging Face Hub, asked once: where it can't be reached, the local cache answers at once, or fails at once."""

from __future__ import annotations

import contextlib
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

from huggingface_hub import constants

TIMEOUT = 5.0  # seconds


@contextlib.contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within this block huggingface_hub is offline if the hub can't be reached.

    Else it retries for 24 s and a page of warnings per file, which no environment variable shortens, and open_clip asks
    for several files. `HF_HUB_OFFLINE=1` spares even the one question.
    """
    if constants.HF_HUB_OFFLINE or reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True  # what HF_HUB_OFFLINE=1 sets; read anew by each request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def reachable(url: str) -> bool:
    """Whether anything answers at `url`, through the system's proxies."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # someone is there; the hub's client brings its own certificates
    except OSError:
        return False
    return True
