"""Arguments from typed signatures: on a command line, in a YAML, from Python; jsonargparse with a few habits."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NoReturn, get_args

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from clip_distill.system.errors import InvalidValue
from clip_distill.system.typos import one_line, require_place

Place = str | os.PathLike[str]  # a folder, a file or a URL
SPELT = {  # types in the help, in words
    "Union[str, PathLike[str], null]": "path | null",
    "Optional[list[str | PathLike[str]]]": "list of paths | null",
    "list[str | PathLike[str]]": "list of paths",
    "str | PathLike[str]": "path",
    "type[Any]": "class",
}


class Parser(ArgumentParser):
    """jsonargparse's parser, in which a switch needs no value (`--resume` is `--resume true`), and a file of settings
    is read before the flags wherever it stands, so that they override it."""

    def parse_args(  # type: ignore[override]  # argparse has overloads by type of namespace
        self, args: Sequence[str] | None = None, *rest: Any, **more: Any
    ) -> Any:
        switches = {name for action in self._actions if is_switch(action) for name in action.option_strings}
        flags = {name for action in self._actions for name in action.option_strings}
        words = [as_written(word, flags, switches) for word in (sys.argv[1:] if args is None else args)]
        filled = []
        for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
            filled += [word, "true"] if word in switches and following.startswith("--") else [word]
        return super().parse_args(files_first(filled, self._actions), *rest, **more)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with one line: what is wrong, and what was meant perhaps."""
        if not self.exit_on_error:
            super().error(message, ex)
        flags = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        self.exit(2, f"{self.prog}: {one_line(message, flags)}\n(`{self.prog} --help` lists what there is)\n")


def as_written(word: str, flags: set[str], switches: set[str]) -> str:
    """A flag as the parser knows it: with `_` for `-`, and `--open=false` for `--no-open`."""
    name, sign, value = word.partition("=")
    if not name.startswith("--") or name in flags:
        return word
    known = f"--{name[2:].replace('-', '_')}"
    if known not in flags and (off := known.replace("--no_", "--", 1)) in switches and not sign:
        return f"{off}=false"
    return f"{known}{sign}{value}" if known in flags or known.startswith("--trainer.") else word


def is_switch(action: argparse.Action) -> bool:
    """Whether an option can be true or false."""
    kind = getattr(action, "_typehint", action.type)
    return kind is bool or bool in get_args(kind)


def files_first(words: Sequence[str], actions: Sequence[argparse.Action]) -> list[str]:
    """Words with the files of settings (`--recipe FILE`) before all others."""
    names = {name for action in actions if isinstance(action, ActionConfigFile) for name in action.option_strings}
    first: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.partition("=")[0] in names:
            first += [word] if "=" in word else [word, *itertools.islice(rest, 1)]
        else:
            others.append(word)
    return first + others


class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with line breaks of the examples kept, and types in words."""

    def _expand_help(self, action: argparse.Action) -> str:
        text: str = super()._expand_help(action)
        for spelling, words in SPELT.items():
            text = text.replace(spelling, words)
        return text


def new_parser(verb: str, description: str, examples: str) -> Parser:
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


def call(verb: str, function: Callable[..., Any], examples: str, argv: Sequence[str], reads: Sequence[str] = ()) -> Any:
    """Parse words by the signature and docstring of a function, call it, return what it returns.

    Args:
        verb: For messages.
        function: The verb's.
        examples: Commands to copy.
        argv: The words.
        reads: Parameters that name places which are read, so must be there.

    Raises:
        NotFound: One of them is not.
    """
    summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
    parser = new_parser(verb, summary, examples)
    parser.add_function_arguments(typed(function), as_group=False)
    arguments = parser.parse_args(argv)
    for name in reads:
        given = arguments.get(name)
        for place in given if isinstance(given, list) else [given]:
            if isinstance(place, str):
                require_place(f"--{name}", place)
    return function(**parser.instantiate(arguments).as_dict())


def typed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its parameters' types in place of their names, and without what it returns.

    For names jsonargparse would import whatever the module imports for the type checker alone: torch, among others.
    """
    assert isinstance(function, FunctionType)
    twin = FunctionType(function.__code__, function.__globals__, function.__name__)
    functools.update_wrapper(twin, function)
    vars(twin).pop("__wrapped__", None)
    twin.__defaults__, twin.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    twin.__annotations__ = {
        name: eval(kind, function.__globals__) if isinstance(kind, str) else kind
        for name, kind in function.__annotations__.items()
        if name != "return"
    }
    return twin


def places_first(flag: str, argv: Sequence[str]) -> list[str]:
    """Words of which those before all options are places: each becomes one of a list, `--flag+=PLACE`."""
    places = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    return [*(f"--{flag}+={place}" for place in places), *argv[len(places) :]]


def layer(keys: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Settings above others: nested (`{"student": {"init": "teacher"}}`, which keeps the base's other keys of
    `student`), or by dotted names (`{"student.init": "teacher"}`)."""
    nested: dict[str, Any] = plain(base)
    for name, value in keys.items():
        *above, last = name.split(".")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        given = plain(value)
        whole = above or not (isinstance(given, dict) and isinstance(place.get(last), dict))
        place[last] = given if whole else place[last] | given
    return nested


def filled(given: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, with the base's at every level where nothing is given."""
    found = dict(base)
    for name, value in given.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        found[name] = filled(value, base[name]) if both else value
    return found


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names, as a parser's defaults are."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found


def parse_keys(parser: Parser, keys: Mapping[str, Any]) -> Any:
    """What `parse_args` gives for the same settings as flags.

    Raises:
        InvalidValue: A key does not exist, a value does not fit, or a required one is missing.
    """
    parser.exit_on_error = False
    try:
        return parser.parse_object(dict(keys))
    except argparse.ArgumentError as error:
        raise InvalidValue(str(error)) from error


def spelt(place: Place | None) -> str | None:
    """A place as a string; a run or a path may be given for it."""
    return None if place is None else os.fspath(place)


def listed(places: Sequence[Place] | Place) -> list[str]:
    """Places as strings; one alone is a list of one, not one of its letters."""
    return [os.fspath(places)] if isinstance(places, str | os.PathLike) else [os.fspath(place) for place in places]


def plain(value: Any) -> Any:
    """A value as a YAML would have it: paths as strings, a class or function of the user's own as `module:Attr`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(value, os.PathLike):
        return plain(dataclasses.asdict(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return name_of(value) if inspect.isclass(value) or inspect.isfunction(value) else value


def name_of(part: Any) -> str:
    """`module:Attr` of a class or function, by which a run can find it again.

    Raises:
        InvalidValue: It is not at the top level of its module.
    """
    if not part.__qualname__.isidentifier():
        raise InvalidValue(
            f"{part.__qualname__}: expected a class or function at the top level of a module, found one within "
            "another; move it out, so that a run can be gone on with"
        )
    return f"{part.__module__}:{part.__qualname__}"
