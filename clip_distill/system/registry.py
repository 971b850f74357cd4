"""Names to objects: `"kl"` looks into a table, `"my_file:MyLoss"` imports the user's own.

Every kind of part (losses, students, teachers, augmentations, exports) has one table of this form:

    LOSSES = {"l1": "clip_distill.losses.feature:L1", ...}

Values are `module:Attr` strings, so reading a table imports nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from clip_distill.system.errors import InvalidValue


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
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise InvalidValue(f"{kind} {name!r}: module {module_name!r} has no {attribute!r}") from error
