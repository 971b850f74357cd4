"""The page and its API, by FastAPI: nothing but photos of the index can be fetched, by their numbers."""

from __future__ import annotations

import importlib.resources
import mimetypes
import os
import time
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.guard import Guard
from clip_distill.photosearch.library import Filter
from clip_distill.pixels.photos import BadImage
from clip_distill.system.errors import Error, NotFound

MOST_BYTES = 30_000_000  # of an uploaded photo
BRIEF = {"cache-control": "private, max-age=300"}  # a photo may change and keep its number
BROWSERS_SHOW = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "avif": "image/avif",
}
PAGE = ("index.html", "app.js", "words.js", "style.css")

Words = Annotated[str, Query(description='words; "2:dog -cat" is twice dog, less cat', max_length=1000)]
Count = Annotated[int, Query(ge=1, le=500, description="answers")]
First = Annotated[int, Query(ge=0, le=1_000_000, description="answers to leave out before them")]
Like = Annotated[int | None, Query(description="id of a photo of the index: more like this")]
Folder = Annotated[str | None, Query(description="photos in this folder, and within it", max_length=4096)]
Day = Annotated[int | None, Query(ge=10101, le=99991231, description="a day, such as 20261129")]
Fold = Annotated[bool, Query(description="take near-duplicates as one answer")]
By = Annotated[Literal["student", "teacher"], Query(description="whose order: the teacher's where its index is there")]
Number = Annotated[int, Path(ge=0, le=2**62)]


@dataclass(frozen=True)
class Asked:
    """What both ways of searching take from the address."""

    q: Words = ""
    k: Count = 10
    first: First = 0
    folder: Folder = None
    since: Day = None
    until: Day = None
    fold: Fold = True
    by: By = "student"


def make_app(engine: Engine, hosts: set[str], token: str | None = None) -> Guard:
    """The server's application.

    Args:
        engine: What answers.
        hosts: Names of this server.
        token: See `Guard`.
    """
    app = FastAPI(title="CLIP Distill photo search", version="1", docs_url=None, redoc_url=None)
    add_search(app, engine)
    add_status(app, engine)
    add_photos(app, engine)
    page = importlib.resources.files("clip_distill.photosearch").joinpath("page")
    for name in PAGE:
        app.get("/" if name == "index.html" else f"/{name}", include_in_schema=False)(served(page.joinpath(name)))
    return Guard(app, hosts, token)


def served(file: Traversable) -> Any:
    """A handler for a file of the page."""
    content, kind = file.read_bytes(), mimetypes.guess_type(file.name)[0]
    kind = "text/javascript" if file.name.endswith(".js") else kind

    async def handler() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return handler


def add_search(app: FastAPI, engine: Engine) -> None:
    """`/api/search`."""

    def answered(response: Response, asked: Asked, **more: Any) -> list[dict[str, Any]]:
        began = time.perf_counter()
        ask = engine.by_teacher if asked.by == "teacher" else engine.ask
        only = Filter(asked.folder, asked.since, asked.until)
        try:
            found = ask(question=asked.q, count=asked.k, first=asked.first, only=only, fold=asked.fold, **more)
        except BadImage as error:
            raise HTTPException(415, f"the photo can't be read: {error.reason}") from error
        except NotFound as error:
            raise HTTPException(404, str(error)) from error
        except Error as error:
            raise HTTPException(422, str(error)) from error
        response.headers["server-timing"] = f"search;dur={1000 * (time.perf_counter() - began):.2f}"
        return found

    @app.get("/api/search")
    def search(response: Response, asked: Annotated[Asked, Depends()], like: Like = None) -> list[dict[str, Any]]:
        """The photos nearest to words, to a photo of the index, or to both, nearest first."""
        return answered(response, asked, like=like)

    @app.post("/api/search")
    async def search_by_photo(
        request: Request, response: Response, asked: Annotated[Asked, Depends()]
    ) -> list[dict[str, Any]]:
        """The photos nearest to a photo, which is the request's body as it is, and to words, nearest first."""
        photo = bytearray()
        async for part in request.stream():
            photo += part
            if len(photo) > MOST_BYTES:
                raise HTTPException(413, f"expected a photo of at most {MOST_BYTES:,} bytes")
        if not photo:
            raise HTTPException(422, "expected a photo as the body, found nothing")
        return await run_in_threadpool(answered, response, asked, photo=bytes(photo))


def add_status(app: FastAPI, engine: Engine) -> None:
    """`/api/latest` and `/api/status`."""

    @app.get("/api/latest")
    def latest(
        k: Count = 10, first: First = 0, folder: Folder = None, since: Day = None, until: Day = None
    ) -> list[dict[str, Any]]:
        """The photos taken last, the last first; their scores are 0."""
        return engine.latest(k, first, Filter(folder, since, until))

    @app.get("/api/status")
    def status() -> dict[str, Any]:
        """How many photos there are, how far indexing is, and what was left out."""
        state = engine.state
        return {
            "photos": len(engine.library),
            "indexing": {
                "running": state.running,
                "done": state.done,
                "total": state.total,
                "rate": round(state.rate(), 1),
                "seconds_left": state.left() if state.running else None,
                "error": state.error,
            },
            "folders": engine.library.folders,
            "unread": [{"path": path, "reason": reason} for path, reason in engine.index.unread()],
            "skipped": state.skips.counts,
            "score": engine.score,
            "beside": engine.beside is not None,
            "student": engine.model.name,
            "teacher": engine.model.teacher,
        }


def add_photos(app: FastAPI, engine: Engine) -> None:
    """`/photo/ID` and `/thumb/ID`: no path from a client is ever opened."""

    @app.get("/photo/{id}", response_class=FileResponse)
    def photo(id: Number) -> Response:
        """A photo of the index as it lies on the disk; as a JPEG where browsers don't show its format."""
        path = engine.index.path_of(id)
        if path is None:
            raise HTTPException(404, "the index has no such photo")
        kind = BROWSERS_SHOW.get(path.rpartition(".")[2].lower())
        try:
            if kind is None:
                return Response(engine.shown(path), media_type="image/jpeg", headers=BRIEF)
            os.stat(path)
            return FileResponse(path, media_type=kind, headers=BRIEF)
        except (OSError, BadImage) as error:
            raise HTTPException(404, "the photo is gone, or can't be read now") from error

    @app.get("/thumb/{id}", response_class=Response)
    def thumb(id: Number) -> Response:
        """A photo of the index as a small JPEG."""
        try:
            content = engine.thumbnail(id)
        except (NotFound, BadImage) as error:
            raise HTTPException(404, str(error)) from error
        return Response(content, media_type="image/jpeg", headers=BRIEF)
