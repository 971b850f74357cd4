"""The public names: what they are, that importing them costs nothing, and that every example runs as it is printed."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.towers.spec import pick_device

pytestmark = pytest.mark.usefixtures("warm_processes")

VERBS = [
    "benchmark",
    "drop_in",
    "embed",
    "evaluate",
    "export",
    "fit",
    "load",
    "plan",
    "quickstart",
    "report",
    "search",
    "zero_shot",
]
CLASSES = [
    "BadImage",
    "BenchmarkReport",
    "Error",
    "EvaluationReport",
    "InvalidValue",
    "Loader",
    "Loss",
    "MissingPackage",
]
CLASSES += [
    "AlreadyExists",
    "Model",
    "NotFound",
    "NotWritten",
    "Optimizer",
    "OutOfMemory",
    "PlanReport",
    "Recipe",
    "Run",
    "Sources",
    "StoreError",
]
CLASSES += ["DropInReport", "Student", "WorkerFailed", "ZeroShotReport"]
NO_EXAMPLE = {
    "quickstart",
    "report",
}  # of minutes, which `make quickstart` runs; and of a page, which its tests look at
TINY = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}


def test_the_public_names_are_these() -> None:
    assert cd.__all__ == sorted(VERBS + CLASSES)
    assert set(cd.__all__) <= set(dir(cd))
    for name in cd.__all__:
        assert getattr(cd, name).__module__.startswith("clip_distill.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        cd.distil  # noqa: B018


def test_rooms_do_not_hide_verbs() -> None:
    """Importing a room sets the package's attribute of its name, which would take a verb's place."""
    assert not set(cd.__all__) & {found.name for found in pkgutil.iter_modules(cd.__path__)}


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, clip_distill; heavy = {'torch', 'numpy', 'pyarrow', 'lightning', 'open_clip', 'jsonargparse'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_every_error_is_of_one_family() -> None:
    family = [cd.InvalidValue, cd.NotFound, cd.AlreadyExists, cd.MissingPackage, cd.StoreError, cd.BadImage]
    assert all(issubclass(each, cd.Error) for each in family)
    builtin = {cd.InvalidValue: ValueError, cd.NotFound: FileNotFoundError, cd.AlreadyExists: FileExistsError}
    assert all(issubclass(ours, theirs) for ours, theirs in builtin.items())


@pytest.fixture(scope="module")
def world(tiny_data: Path, tiny_teacher: str, tiny_views_store: Path, tiny_runs: dict[str, Path]) -> dict[str, Any]:
    photo = next((tiny_data / "image").iterdir())
    classes = tiny_data.parent / "classes.txt"
    classes.write_text("circle\nsquare\n", encoding="utf-8")
    return {"cd": cd, "DATA": tiny_data, "TEACHER": tiny_teacher, "RUN": tiny_runs["text"], "PHOTO": photo} | {
        "STORE": tiny_views_store,
        "PHOTOS": tiny_data / "COCO/val2017",
        "CLASSES": classes,
    }


def examples() -> Iterator[doctest.DocTest]:
    """The examples in the docstrings of all public names, and of the public methods of classes."""
    finder = doctest.DocTestFinder(recurse=False)
    for name in cd.__all__:
        value = getattr(cd, name)
        parts = {name: value}
        if inspect.isclass(value):
            parts |= {f"{name}.{key}": part for key, part in vars(value).items() if inspect.isfunction(part)}
        for title, part in parts.items():
            yield from (test for test in finder.find(part, title, module=False, globs={}) if test.examples)


EXAMPLES = {test.name: test for test in examples()}


def test_every_verb_shows_an_example() -> None:
    assert set(VERBS) - NO_EXAMPLE <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of(name: str, world: dict[str, Any], tmp_path: Path) -> None:
    test = EXAMPLES[name]
    store = tmp_path / "store" if name == "embed" else world["STORE"]
    test.globs = world | {"OUT": tmp_path / "out", "STORE": store}
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    cli_lines = cd.system.talk.LOGGER.handlers  # what is said is no part of an example's output
    cd.system.talk.LOGGER.handlers = []
    try:
        result = runner.run(test, out=said.append)
    finally:
        cd.system.talk.LOGGER.handlers = cli_lines
    assert result.attempted and not result.failed, "".join(said)


def test_a_run_from_python_is_the_one_of_the_command_line(world: dict[str, Any], tmp_path: Path) -> None:
    same = {"tower": "text", "data": world["DATA"], "store": world["STORE"], "seed": 3, "preset": "none"}
    run = cd.fit(
        **same,
        out=tmp_path / "python",
        student={"options": TINY},
        loss={"names": ["cosine", "gram_kl"]},
        trainer={"max_epochs": 2, "accelerator": "cpu"},
        **{"optimizer.lr": 1e-2, "loader.batch_size": 8, "loader.workers": 0},
    )
    words = [word for key, value in same.items() for word in (f"--{key}", str(value))]
    words += ["--out", str(tmp_path / "flags"), "--student.options", str(TINY), "--loss.names", "[cosine, gram_kl]"]
    words += ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--optimizer.lr", "1e-2"]
    cli.main(["fit", *words, "--loader.batch_size", "8", "--loader.workers", "0"])
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("python", "flags")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.students == {"text": tmp_path / "python/student"}
    assert run.mean_recall is not None and 0 <= run.mean_recall <= 100
    recipes = [
        (tmp_path / name / "recipe.yaml").read_text().replace(str(tmp_path / name), "") for name in ("python", "flags")
    ]
    assert recipes[0] == recipes[1]


class Squared(torch.nn.Module):
    """A loss of one's own."""

    def forward(self, student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (student - target).square().mean()


def test_a_loss_of_ones_own_is_given_as_a_class(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, Squared.__module__, sys.modules[__name__])
    common = {"tower": "text", "data": world["DATA"], "store": world["STORE"], "student": {"options": TINY}}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    own = cd.fit(**common, out=tmp_path / "own", loss={"names": [Squared]}, trainer=trainer)
    ours = cd.fit(**common, out=tmp_path / "ours", loss={"names": ["mse"]}, trainer=trainer)
    assert own.mean_recall == ours.mean_recall


def test_a_class_within_a_function_has_no_name_to_find_it_by(world: dict[str, Any], tmp_path: Path) -> None:
    class Hidden(Squared):
        pass

    with pytest.raises(cd.Error, match="expected a class or function at the top level"):
        cd.fit(tower="text", data=world["DATA"], store=world["STORE"], out=tmp_path, loss={"names": [Hidden]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimiser.lr": 1}, "optimiser"),
        ({"optimizer.lr": "fast"}, "optimizer.lr"),
        ({"store": "nowhere"}, "expected a finished store"),
        ({"store": None}, "fit: expected store=…, found none"),
        ({"recipe": "nowhere.yaml"}, "nowhere"),
        ({"loss": {"names": ["nonsense"]}}, "unknown loss 'nonsense'"),
        ({"mixup": 0.2}, "expected --tower image"),
    ],
)
def test_mistakes_are_exceptions_of_ours(
    keys: dict[str, Any], message: str, world: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(cd.Error, match=message):
        cd.fit(**{"tower": "text", "data": world["DATA"], "store": world["STORE"], "out": tmp_path / "run"} | keys)
    assert not (tmp_path / "run").exists()


def test_one_place_is_a_list_of_one_and_a_device_is_one_that_there_is(tmp_path: Path) -> None:
    with pytest.raises(cd.Error, match="since nowhere has no recipe"):
        cd.report("nowhere")
    with pytest.raises(cd.InvalidValue, match="device: expected auto, .*, found 'cudda'"):
        pick_device("cudda")


def test_a_recipe_is_a_file_or_an_object_and_keywords_override_it(world: dict[str, Any], tmp_path: Path) -> None:
    common = {"tower": "text", "data": world["DATA"], "store": world["STORE"], "student": {"options": TINY}}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    first = cd.fit(**common, out=tmp_path / "a", preset="none", trainer=trainer)
    again = cd.fit(tmp_path / "a/recipe.yaml", out=tmp_path / "b")
    given = cd.Recipe("text", str(world["DATA"]), str(world["STORE"]), "unused", student=cd.Student(options=TINY))
    third = cd.fit(given, out=tmp_path / "c", trainer={"max_epochs": 1, "accelerator": "cpu"})
    assert first.mean_recall == again.mean_recall == third.mean_recall


def test_a_report_prints_as_its_table_and_has_every_number(world: dict[str, Any]) -> None:
    report = cd.evaluate(data=world["DATA"], store=world["STORE"], text_student=world["RUN"])
    text = str(report)
    assert "8 photos, 24 captions (val)" in text and "student" in text and "kept" in text
    assert report.to_dict()["pairings"] == report.pairings
    assert report.pairing("teacher", "student")["text"] == "student"
    with pytest.raises(cd.Error, match="expected one of the pairings that were measured"):
        report.pairing("student", "student")
