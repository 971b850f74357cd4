"""Names to objects: `"kl"` looks into a table, `"my_file:MyLoss"` imports the user's own.

Every kind of part (losses, students, teachers, augmentations, exports) has one table of this form:

    LOSSES = {"l1": "clip_distill.losses.feature:L1", ...}

Values are `module:Attr` strings, so reading a table imports nothing.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from clip_distill.system.errors import InvalidValue

TRUST = "CLIP_DISTILL_TRUST_CODE"
# transformers: and upright: begin a teacher's name
OWN = re.compile(r"(?!transformers:|upright:|clip_distill[.:])[A-Za-z_][\w.]*:[A-Za-z_]\w*")
LIBRARIES = ("lightning.", "pytorch_lightning.", "torch.", "clip_distill.")
_imported: set[str] = set()  # what this process was told to import


def resolve(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Return the object called `name`.

    Args:
        kind: What the table holds, in the singular; used in errors ("loss").
        table: Known names and where each lives, as `module:Attr`.
        name: A key of `table`, or `module:Attr` of the user's own; modules in the working directory are found.

    Raises:
        ValueError: The name is neither, or the module or the attribute does not exist.
    """
    target = table.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not (module_name and attribute):
        raise InvalidValue(
            f"unknown {kind} {name!r}: expected one of {', '.join(sorted(table))}, "
            f"or your own as 'module:Attr' (a file my_{kind}.py in this folder: 'my_{kind}:Attr')"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise InvalidValue(
            f"{kind} {name!r}: there is no module {module_name!r} on sys.path or in {os.getcwd()}"
        ) from error
    _imported.add(target)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise InvalidValue(f"{kind} {name!r}: module {module_name!r} has no {attribute!r}") from error


def require_trust(place: str, content: Any) -> None:
    """Refuse a file that names code to be imported, unless its reader is trusted to have written it.

    Who types `module:Attr` on a command line or in Python means it; a recipe or a student's folder may be a stranger's.

    Args:
        place: The file, for the message.
        content: What it holds.

    Raises:
        InvalidValue: It names code, and neither --trust_code nor CLIP_DISTILL_TRUST_CODE says that it may run.
    """
    names = sorted(set(_own_names(content)) - _imported)
    if names and not os.environ.get(TRUST):
        raise InvalidValue(
            f"{place}: expected no code of its own, found {', '.join(names)}, which would be imported and run. If you "
            f"know who wrote it, add --trust_code, or set {TRUST}=1"
        )


def _own_names(content: Any) -> Iterator[str]:
    """Every `module:Attr`, and every `class_path` that is not one of Lightning's or torch's."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == "class_path" and isinstance(value, str) and not value.startswith(LIBRARIES):
                yield value
            yield from _own_names(key)
            yield from _own_names(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _own_names(value)
    elif isinstance(content, str) and OWN.fullmatch(content):
        yield content
