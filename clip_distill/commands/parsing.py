"""Command lines from typed functions: jsonargparse reads the signature and the docstring; we add the examples."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with line breaks of the examples kept."""


def new_parser(verb: str, description: str, examples: str) -> ArgumentParser:
    """A parser for `clip-distill VERB`.

    Args:
        verb: The verb.
        description: What it does, in a sentence or two.
        examples: Commands to copy, shown below the options.
    """
    return ArgumentParser(
        prog=f"clip-distill {verb}",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=Formatter,
    )


def run(verb: str, function: Callable[..., Any], examples: str, argv: list[str]) -> Any:
    """Parse `argv` by the signature of `function`, call it, return what it returns."""
    summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
    parser = new_parser(verb, summary, examples)
    parser.add_function_arguments(function, as_group=False)
    arguments = parser.parse_args(argv)
    return function(**parser.instantiate(arguments).as_dict())
