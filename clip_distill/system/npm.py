"""Files of a package of the npm registry, fetched once into the cache, checked by their published hash."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import cache_folder, write_bytes

REGISTRY = "https://registry.npmjs.org"
TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class Package:
    """A release.

    Args:
        name: `@scope/name` or `name`.
        version: Of the release.
        sha512: Base64, as the registry's `integrity` has it.
        files: Those that are wanted, by their place in it.
        licence: Its name.
    """

    name: str
    version: str
    sha512: str
    files: Sequence[str]
    licence: str

    @property
    def address(self) -> str:
        registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
        return f"{registry}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


def fetch(package: Package) -> dict[str, Path]:
    """The wanted files, by their place in the package.

    Raises:
        InvalidValue: The registry can't be reached, or what it sends is another file.
    """
    folder = cache_folder() / "npm" / package.name.replace("/", "+") / package.version
    places = {name: folder / name for name in package.files}
    if all(path.is_file() for path in places.values()):
        return places
    try:
        with urllib.request.urlopen(package.address, timeout=TIMEOUT) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise InvalidValue(
            f"{package.name} {package.version}: expected to fetch {package.address}, found {error}. Where there is no "
            f"network, unpack it elsewhere and copy {', '.join(package.files)} into {folder}"
        ) from error
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != package.sha512:
        raise InvalidValue(f"{package.address}: expected the SHA-512 {package.sha512}, found {found}")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for name, path in places.items():
            inner = tar.extractfile(f"package/{name}")
            assert inner is not None
            write_bytes(path, inner.read())
    return places
