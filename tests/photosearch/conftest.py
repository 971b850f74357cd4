"""Photos that are drawn, a model that is loaded once, and an engine over both."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
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


@pytest.fixture
def port(engine: Engine) -> Iterator[int]:
    """Of a server over `engine`, which runs in a thread."""
    uvicorn = pytest.importorskip("uvicorn")
    serve = pytest.importorskip("clip_distill.photosearch.serve")
    server = pytest.importorskip("clip_distill.photosearch.server")
    listening = serve.bound("127.0.0.1", 0)
    app = server.make_app(engine, serve.names_of("127.0.0.1"))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    running.should_exit = True
    thread.join()
