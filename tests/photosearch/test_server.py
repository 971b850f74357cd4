"""The API: what it answers, and whom it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clip_distill as cd
from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.index import Index
from clip_distill.system.errors import InvalidValue

testclient = pytest.importorskip("starlette.testclient")
serve = pytest.importorskip("clip_distill.photosearch.serve")
server = pytest.importorskip("clip_distill.photosearch.server")

Make = Callable[..., Engine]


def client(engine: Engine, token: str | None = None, host: str = "127.0.0.1:8321", **options: Any) -> Any:
    app: Any = server.make_app(engine, {"127.0.0.1", "localhost", "[::1]"}, token)
    return testclient.TestClient(app, base_url=f"http://{host}", **options)


@pytest.fixture
def asked(engine: Engine) -> Any:
    return client(engine)


def test_words_are_answered_in_the_models_order(asked: Any, engine: Engine) -> None:
    response = asked.get("/api/search", params={"q": "a red circle", "k": 5, "fold": False})
    found = response.json()
    contents = engine.index.contents()
    scores = contents.matrix @ engine.model.encode_text("a red circle")
    best = scores.argsort()[::-1][:5]
    assert [each["path"] for each in found] == [contents.paths[row] for row in best]
    assert found[0]["score"] == pytest.approx(float(scores[best[0]]), abs=1e-5)
    assert response.headers["server-timing"].startswith("search;dur=")
    following = asked.get("/api/search", params={"q": "a red circle", "k": 3, "first": 2, "fold": False}).json()
    assert [each["id"] for each in following] == [each["id"] for each in found[2:5]]


def test_a_photo_finds_itself_alone_with_words_and_by_number(asked: Any, photos: Path) -> None:
    path = sorted(photos.rglob("*.*"))[3]
    found = asked.post("/api/search", params={"k": 3, "fold": False}, content=path.read_bytes()).json()
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)
    by_number = asked.get("/api/search", params={"like": found[0]["id"], "k": 3, "fold": False}).json()
    assert [each["id"] for each in by_number] == [each["id"] for each in found]
    both = asked.post("/api/search", params={"q": "-circle", "k": 3}, content=path.read_bytes()).json()
    assert both[0]["score"] < found[0]["score"] and both[0]["good"] is None


def test_scores_say_what_a_good_match_is(photos: Path, make_engine: Make) -> None:
    engine = make_engine(photos, score=2.0)
    engine.bring_up_to_date()
    assert [each["good"] for each in engine.ask("dog", count=2)] == [False, False]
    engine.score = -1.0
    assert [each["good"] for each in engine.ask("dog", count=2)] == [True, True]


def test_photos_and_thumbnails_of_the_index(asked: Any, engine: Engine, photos: Path) -> None:
    contents = engine.index.contents()
    number, path = int(contents.ids[0]), Path(contents.paths[0])
    photo = asked.get(f"/photo/{number}")
    assert photo.content == path.read_bytes() and photo.headers["content-type"].startswith("image/")
    thumb = asked.get(f"/thumb/{number}")
    assert Image.open(io.BytesIO(thumb.content)).size == (48, 40) and thumb.headers["content-type"] == "image/jpeg"
    assert engine.index.thumb(number) == thumb.content
    path.unlink()
    assert asked.get(f"/photo/{number}").status_code == 404 and asked.get(f"/thumb/{number}").status_code == 200


def test_what_browsers_do_not_show_is_sent_as_jpeg(engine: Engine, photos: Path) -> None:
    picture = Image.new("RGB", (50, 30), "red")
    exif = Image.Exif()
    exif[274] = 8
    picture.save(photos / "scan.tiff", exif=exif)
    engine.bring_up_to_date()
    contents = engine.index.contents()
    number = contents.ids[contents.paths.index(str(photos / "scan.tiff"))]
    response = client(engine).get(f"/photo/{number}")
    assert response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(response.content)).size == (30, 50), "upright"


@pytest.mark.parametrize(
    "path",
    ["/photo/999999", "/photo/-1", "/photo/..%2F..%2Fetc%2Fpasswd", "/photo//etc/passwd", "/thumb/1e3", "/photo/0",
     "/page/app.js", "/static/style.css", "/docs", "/redoc"],
)  # fmt: skip
def test_nothing_else_can_be_fetched(path: str, asked: Any) -> None:
    assert asked.get(path).status_code in (404, 422)


def test_bad_questions_are_told(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked.get("/api/search").status_code == 422
    assert asked.get("/api/search", params={"q": "a" * 1001}).status_code == 422
    assert asked.get("/api/search", params={"q": "dog", "k": 100_000}).status_code == 422
    assert asked.get("/api/search", params={"q": "dog -dog"}).json()["detail"].startswith("expected words that mean")
    assert asked.get("/api/search", params={"like": 10**9}).status_code == 404
    assert asked.post("/api/search").status_code == 422
    assert asked.post("/api/search", content=b"no photo").json()["detail"] == "the photo can't be read: not an image"
    monkeypatch.setattr(server, "MOST_BYTES", 100)
    assert asked.post("/api/search", content=b"x" * 101).status_code == 413


def test_a_bomb_of_pixels_is_refused(asked: Any) -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 9_000)).save(file, "PNG")
    response = asked.post("/api/search", content=file.getvalue())
    assert response.status_code == 415 and "too large" in response.json()["detail"]


def test_status_says_what_there_is(asked: Any, engine: Engine, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    engine.bring_up_to_date()
    found = asked.get("/api/status").json()
    assert found["photos"] == 24 and not found["indexing"]["running"]
    assert found["folders"] == [str(photos / "new"), str(photos / "old")]
    assert found["unread"] == [{"path": str(photos / "broken.jpg"), "reason": "not an image"}]
    latest = asked.get("/api/latest", params={"k": 5, "folder": str(photos / "old")}).json()
    assert len(latest) == 5 and all(each["path"].startswith(str(photos / "old")) for each in latest)


def test_it_describes_itself(asked: Any) -> None:
    paths = asked.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/api/search", "/api/latest", "/api/status", "/photo/{id}", "/thumb/{id}"}


def test_every_answer_is_kept_from_other_sites(asked: Any) -> None:
    for path in ("/", "/app.js", "/words.js", "/style.css", "/api/status", "/nowhere"):
        headers = asked.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8321"}, 421),
        ({"host": ""}, 421),
        ({"host": "localhost:8321"}, 200),
        ({"host": "[::1]:8321"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://127.0.0.1:8321"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)
def test_hosts_and_origins(headers: dict[str, str], status: int, asked: Any) -> None:
    assert asked.get("/api/status", headers=headers).status_code == status
    if "host" not in headers and status == 403:
        assert asked.post("/api/search", headers=headers, content=b"x").status_code == 403


def test_a_link_elsewhere_may_open_the_page_alone(asked: Any) -> None:
    opened = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert asked.get("/", headers=opened).status_code == 200
    assert asked.get("/photo/1", headers=opened).status_code == 403


def test_a_token_is_asked_for_and_leaves_the_address(engine: Engine) -> None:
    asked = client(engine, token="secret")
    assert asked.get("/api/status").status_code == 401 and asked.get("/").status_code == 401
    assert asked.get("/api/status", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert asked.get("/api/status", headers={"authorization": "Bearer secret"}).status_code == 200
    assert asked.get("/?token=wrong").status_code == 401
    opened = asked.get("/?token=secret", follow_redirects=False)
    assert opened.status_code == 303 and opened.headers["location"] == "/"
    assert (
        "httponly" in opened.headers["set-cookie"].lower() and "samesite=strict" in opened.headers["set-cookie"].lower()
    )
    assert asked.get("/api/status").status_code == 200, "the cookie is enough"


def test_where_it_listens() -> None:
    assert serve.is_loopback("127.0.0.1") and serve.is_loopback("::1") and serve.is_loopback("localhost")
    assert not serve.is_loopback("0.0.0.0") and not serve.is_loopback("example.org")
    assert serve.names_of("127.0.0.1") == {"127.0.0.1", "localhost", "[::1]"}
    assert {"127.0.0.1", "localhost"} < serve.names_of("0.0.0.0")
    with serve.bound("127.0.0.1", 0) as taken, pytest.raises(InvalidValue, match="expected an address to listen at"):
        serve.bound("127.0.0.1", taken.getsockname()[1])


def test_the_teachers_order_is_beside_where_its_index_is(
    engine: Engine, tiny_runs: dict[str, Path], tmp_path: Path, photos: Path
) -> None:
    assert client(engine).get("/api/search", params={"q": "dog", "by": "teacher"}).status_code == 404
    other = cd.load(image=tiny_runs["image"], text=tiny_runs["text"], device="cpu")
    index = Index(tmp_path / "beside", {"student": "other", "dim": other.embed_dim})
    sorted(photos.rglob("*.*"))[0].rename(photos / "aside.png")  # so that both number the photos in other orders
    engine.bring_up_to_date()
    engine.beside = Engine(other, index, [str(photos)])
    engine.beside.bring_up_to_date()
    asked = client(engine)
    assert asked.get("/api/status").json()["beside"] is True
    question = {"q": "a red circle", "k": 24, "fold": False, "by": "teacher"}
    found = asked.get("/api/search", params=question).json()
    expected = engine.beside.ask("a red circle", count=24, fold=False)
    assert [each["path"] for each in found] == [each["path"] for each in expected] and len(found) == 24
    assert all(engine.index.path_of(each["id"]) == each["path"] for each in found)
    like = asked.get("/api/search", params={"like": found[5]["id"], "k": 3, "fold": False, "by": "teacher"}).json()
    assert like[0]["path"] == found[5]["path"] and like[0]["score"] == pytest.approx(1, abs=1e-3)
    by_photo = asked.post("/api/search", params=question | {"q": ""}, content=Path(found[0]["path"]).read_bytes())
    assert by_photo.json()[0]["path"] == found[0]["path"]
