"""Photos that are drawn, a model that is loaded once, and an engine over both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import clip_distill as cd
from clip_distill.model.model import Model
from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.index import Index


@pytest.fixture(scope="session")
def teacher_model(tiny_teacher: str) -> Model:
    return cd.load(tiny_teacher, device="cpu")


@pytest.fixture
def photos(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the training photos in two folders, to change."""
    root = tmp_path / "photos"
    for number, path in enumerate(sorted((tiny_data / "image").iterdir())):
        folder = root / ("old" if number < 8 else "new")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return root


@pytest.fixture
def make_engine(teacher_model: Model, tmp_path: Path) -> Callable[..., Engine]:
    def make(*folders: Path, **options: object) -> Engine:
        index = Index(tmp_path / "index", {"student": "tiny", "dim": teacher_model.embed_dim})
        return Engine(teacher_model, index, [str(folder) for folder in folders], **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def engine(photos: Path, make_engine: Callable[..., Engine]) -> Engine:
    """Up to date with `photos`."""
    made = make_engine(photos)
    made.bring_up_to_date()
    return made
