"""Command lines from typed functions: jsonargparse reads the signature and the docstring; we add the examples."""

from __future__ import annotations

import argparse
import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class Parser(ArgumentParser):
    """jsonargparse's parser, in which a switch needs no value: `--resume` is `--resume true`."""

    def parse_args(  # type: ignore[override]  # argparse has overloads by type of namespace
        self, args: Sequence[str] | None = None, *rest: Any, **more: Any
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        switches = {name for action in self._actions if is_switch(action) for name in action.option_strings}
        filled = []
        for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
            filled += [word, "true"] if word in switches and following.startswith("--") else [word]
        return super().parse_args(filled, *rest, **more)


def is_switch(action: argparse.Action) -> bool:
    """Whether an option is true or false, and nothing else."""
    return getattr(action, "_typehint", action.type) is bool


class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with line breaks of the examples kept."""


def new_parser(verb: str, description: str, examples: str) -> ArgumentParser:
    """A parser for `clip-distill VERB`.

    Args:
        verb: The verb.
        description: What it does, in a sentence or two.
        examples: Commands to copy, shown below the options.
    """
    return Parser(
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
