"""The verbs: one public function a file, whose signature and docstring are the command's flags and help, too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from clip_distill.system.arguments import call
from clip_distill.system.typos import did_you_mean


def run(verb: str, argv: Sequence[str]) -> None:
    """What `clip-distill VERB ARGUMENTS` does: call the verb's function, and print what it found out.

    Args:
        verb: A module of this room, with hyphens as people write them.
        argv: Its arguments, as words.
    """
    name_of_function = verb.replace("-", "_")
    module: Any = importlib.import_module(f"clip_distill.verbs.{name_of_function}")
    if hasattr(module, "VERBS"):
        name = argv[0] if argv else "--help"
        if name in ("-h", "--help"):
            print(module.USAGE)
            return
        if name not in module.VERBS:
            near = did_you_mean(name, module.VERBS)
            sys.exit(f"clip-distill {verb}: unknown verb {name!r}: expected one of {', '.join(module.VERBS)}{near}")
        result = call(f"{verb} {name}", module.VERBS[name], module.EXAMPLES[name], argv[1:], module.READS)
    elif hasattr(module, "command"):  # its settings are those of a recipe, and of Lightning's Trainer
        result = module.command(argv)
    else:
        result = call(verb, getattr(module, name_of_function), module.EXAMPLES, argv, module.READS)
    if hasattr(result, "show"):
        result.show()
    if getattr(result, "exit_status", 0):  # a verdict, for scripts
        sys.exit(result.exit_status)
