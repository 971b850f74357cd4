"""The package as others get it: a wheel and an sdist, installed where no checkout is in sight."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.name for path in (ROOT / "clip_distill/recipes").glob("*.yaml"))
FIT = """
import sys
import clip_distill as cd

data, teacher, store, out = sys.argv[1:]
cd.embed(data=data, teacher=teacher, store=store, workers=0, device="cpu")
student = {"vocabulary": "full", "options": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}}
run = cd.fit(
    "flickr8k_text", data=data, store=store, out=out, student=student,
    loss={"names": ["cosine"], "weights": None, "scales": None, "options": {}},
    trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
)
print(cd.__file__, cd.__version__, cd.load(run).encode_text(["a red circle", "一只狗"]).shape)
"""


def run(*words: str | Path, cwd: Path) -> str:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # may lead to a checkout
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dist/` of a copy of what git tracks, as `make build` makes it, with the build tools that are installed."""
    copy = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its dependencies are those of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (wheel,) = built.glob("*.whl")
    python = folder / "bin/python"
    run(sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # a path alone: links to a checkout, which an environment's own .pth files make, are not followed
    (packages / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    return folder


def test_the_wheel_has_the_package_its_recipes_and_its_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(Path(name).name for name in names if name.startswith("clip_distill/recipes/")) == sorted(
        [*RECIPES, "__init__.py"]
    )
    assert {"clip_distill/py.typed", "clip_distill/__main__.py", "clip_distill/verbs/fit.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"clip_distill"}


def test_the_sdist_has_what_the_wheel_is_made_of(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"clip_distill/recipes/{name}" for name in RECIPES} <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "clip_distill/py.typed"} <= names


def test_the_command_and_a_shipped_recipe_are_there(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin/clip-distill"
    assert "usage: clip-distill" in run(command, "--help", cwd=tmp_path)
    assert run(installed / "bin/python", "-m", "clip_distill", "--version", cwd=tmp_path) == run(
        command, "--version", cwd=tmp_path
    )
    printed = run(command, "fit", "--recipe", "flickr8k_text_balanced", "--print_config", cwd=tmp_path)
    found = yaml.safe_load(printed)
    assert (found["tower"], found["student"]["vocabulary"]) == ("text", "corpus")


def test_it_trains_through_the_api(installed: Path, tiny_data: Path, tiny_teacher: str, tmp_path: Path) -> None:
    places = [tiny_data, tiny_teacher, "store", "out"]
    printed = run(installed / "bin/python", "-c", FIT, *places, cwd=tmp_path)
    assert printed.splitlines()[-1].startswith(str(installed))
    assert printed.splitlines()[-1].endswith("(2, 32)")
    assert (tmp_path / "out/recipe.yaml").is_file()


def test_searching_takes_no_torch_and_training_does() -> None:
    needs = [re.split(r"[<>=\\[ ;]", line)[0] for line in requires("clip-distill") or [] if "extra ==" not in line]
    assert {"numpy", "pillow"} < set(needs) and not {"torch", "lightning", "timm", "open_clip_torch"} & set(needs)
    train = [line for line in requires("clip-distill") or [] if 'extra == "train"' in line]
    assert any(line.startswith("torch") for line in train)
