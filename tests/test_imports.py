"""The package's shape, read from its source: imports go downward only, and files and functions fit on a screen."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "clip_distill"
# Top to bottom: a room, or a module at the root, imports what stands below it, and its own neighbours.
ROOMS = (
    ("__main__",),
    ("original",),
    ("cli",),
    ("verbs",),
    ("benchmarking", "photosearch", "planning", "reporting", "walkthrough"),
    ("train",),
    ("model",),
    ("evaluation",),
    ("exports",),
    ("batches",),
    ("store", "students", "teachers"),
    ("recipe", "recipes"),
    ("tokens", "corpus"),
    ("pixels",),
    ("losses",),
    ("towers",),
    ("runtimes",),
    ("system",),
)
BEGINS = ("train.begin", "train.online")  # the teacher is loaded there, or never
STUDENTS_ALONE = ("train", "batches", "students", "store", "tokens", "corpus", "pixels", "losses")
MAY_IMPORT_LIGHTNING = ("train", "batches.loader", "verbs", "walkthrough", "planning", "original")


def name_of(path: Path) -> str:
    """Dotted, without the package's name; empty for the package itself."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def source_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in source_files(PACKAGE)}


def imported(tree: ast.AST) -> Iterator[str]:
    """Absolute names of what a module imports, down to the attribute, also within its functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            yield from imported(node)


@cache
def own_imports(name: str) -> set[str]:
    """The package's modules that a module imports."""
    found = set()
    for target in imported(MODULES[name]):
        if target == PACKAGE or target.startswith(f"{PACKAGE}."):
            inner = target.removeprefix(PACKAGE).removeprefix(".")
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found - {""}


@cache
def reachable(name: str) -> set[str]:
    """A module and all that it imports, directly or not."""
    seen, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += own_imports(current)
    return seen


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def room(name: str) -> str:
    return name.partition(".")[0]


def height(name: str) -> int:
    """How far below the top a module's room stands."""
    found = [place for place, row in enumerate(ROOMS) if room(name) in row]
    assert found, f"{name} has no room yet: add it to ROOMS"
    return found[0]


@cache
def outside(name: str) -> set[str]:
    """Top-level names of the other packages that a module imports."""
    return {target.partition(".")[0] for target in imported(MODULES[name])} - {PACKAGE}


NAMES = sorted(MODULES.keys() - {""})


def offenders(names: Iterable[str], found: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    """Module → what is wrong with it, for those with which something is."""
    return {name: wrong for name in names if (wrong := sorted(found(name)))}


def test_imports_go_downward_only() -> None:
    def upward(name: str) -> set[str]:
        below = {t for t in own_imports(name) if room(t) == room(name) or height(t) > height(name)}
        return own_imports(name) - below

    assert not offenders(NAMES, upward)


def test_modules_do_not_import_in_circles() -> None:
    """Imports within functions count, too: they hide a circle, and don't open it."""
    assert not offenders(NAMES, lambda name: (t for t in own_imports(name) - {name} if name in reachable(t)))


def test_losses_import_torch_alone() -> None:
    standard = {"__future__", "collections", "typing", "math", "torch"}

    def other(name: str) -> set[str]:
        own = {t for t in own_imports(name) if not within(t, "system.registry", "system.errors", "losses")}
        return own | outside(name) - standard

    assert not offenders((name for name in NAMES if within(name, "losses")), other)


def test_what_trains_a_student_never_reaches_a_teacher() -> None:
    names = [name for name in NAMES if within(name, *STUDENTS_ALONE) and name not in BEGINS]
    assert not offenders(names, lambda name: (t for t in reachable(name) if within(t, "teachers", *BEGINS)))


def test_lightning_is_imported_by_the_training_alone() -> None:
    assert not offenders(NAMES, lambda name: outside(name) & {"pytorch_lightning"})
    others = [name for name in NAMES if not within(name, *MAY_IMPORT_LIGHTNING)]
    assert not offenders(others, lambda name: outside(name) & {"lightning"})


def test_evaluation_and_export_never_reach_lightning() -> None:
    names = [name for name in NAMES if within(name, "evaluation", "exports")]
    assert not offenders(names, lambda name: (t for t in reachable(name) if "lightning" in outside(t)))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Less the docstring, which is a command's whole help."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_files_and_functions_are_short() -> None:
    def long(path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) >= 300:
            yield "the file"
        functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        yield from (each.name for each in functions if code_lines(each) >= 60)

    paths = {str(path.relative_to(ROOT)): path for path in source_files(PACKAGE, "tests", "benchmarks")}
    assert not offenders(paths, lambda name: long(paths[name]))
