"""What a table of a store holds and what made it, and how two of them are compared."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.spec import identity

FORMAT = 1
MANIFEST = "manifest.json"


class StoreError(InvalidValue):
    """A store is missing, unfinished, or made from something else than is asked for."""


@dataclass(frozen=True)
class Manifest:
    """What a table holds and what made it. All but `rows`, `shards` and `skipped` is its fingerprint.

    Args:
        tower: "image" or "text": which of the teacher's towers made it.
        split: "train" or "val".
        teacher: Name, `weights_sha256` of the whole model, `model_cfg`, `preprocess`, `tokenizer`, `embed_dim`,
            `logit_scale`.
        views: V, how many views each row has. View 0 is the teacher's own preprocessing, without augmentation.
        augment: Name of the augmentation that made views 1 and up.
        seed: The view seed.
        dtype: Of the stored numbers, "float16" or "float32".
        precision: What the teacher computed in: "fp32", "bf16" or "fp16".
        rows: N.
        shards: A record per shard, `{"name", "rows", "sha256": {file: hex}}`.
        skipped: Reason → how many images or captions were left out for it.
        format: Version of this layout.
    """

    tower: str
    split: str
    teacher: dict[str, Any]
    views: int
    augment: str
    seed: int
    dtype: str
    precision: str
    rows: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def dim(self) -> int:
        """D."""
        return int(self.teacher["embed_dim"])

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two tables to hold the same numbers, flat: dotted key → value."""
        made_by = {"format": self.format, "tower": self.tower, "split": self.split, "views": self.views}
        made_by |= {"augment": self.augment, "seed": self.seed, "dtype": self.dtype, "precision": self.precision}
        return made_by | teacher_fingerprint(self.teacher)


def teacher_fingerprint(teacher: dict[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that names the teacher. Its name is left out: a copied folder is the same teacher."""
    keys = ("weights_sha256", "embed_dim", "preprocess")
    known = {key: teacher.get(key) for key in keys} | {"tokenizer": identity(teacher["tokenizer"])}
    return flatten({"teacher": known})


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(item) if isinstance(item, tuple) else item
    return flat


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for each key whose value differs, "key: expected …, found …"."""
    return [
        f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]


def require_same(what: str, expected: dict[str, Any], found: dict[str, Any], fix: str) -> None:
    """Raise a StoreError that lists every difference between two fingerprints, and the fix."""
    lines = differences(expected, found)
    if lines:
        raise StoreError(f"{what} was made from something else:\n  " + "\n  ".join(lines) + f"\n{fix}")


@contextlib.contextmanager
def damaged(folder: object) -> Iterator[None]:
    """Errors of reading a table's files as one that names the table.

    Raises:
        StoreError: A file is cut, changed, or not there.
    """
    try:
        yield
    except (InvalidValue, FileNotFoundError):
        raise  # which say what they are of
    except (ValueError, KeyError, IndexError, OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{folder}: expected a store's files as its manifest has them, found one damaged ({error!r}). "
            "`clip-distill store verify` lists all that are; delete their shards' folders and the manifest, and run "
            "`clip-distill embed` again"
        ) from error


def read_manifest(place: str, content: bytes) -> Manifest:
    """A manifest from what its file holds.

    Args:
        place: The file, for messages.
        content: Its bytes.

    Raises:
        StoreError: It is of another format, or damaged.
    """
    try:
        found = json.loads(content)
        if found.get("format") != FORMAT:
            raise StoreError(f"{place}: expected store format {FORMAT}, found {found.get('format')}")
        manifest = Manifest(**found)
        counts = [manifest.rows, manifest.views, manifest.dim, *(shard["rows"] for shard in manifest.shards)]
        if not all(isinstance(count, int) and 0 <= count < 2**48 for count in counts):
            raise ValueError(f"counts of rows, views and dimensions are {counts}")
        return manifest
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{place}: expected a store's manifest, found it damaged ({error!r}). Delete it and run "
            "`clip-distill embed` again: finished shards are kept"
        ) from error
