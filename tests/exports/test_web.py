"""The page of `export --to web`, in a real browser: photos chosen, words typed, photos ranked, nothing sent."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clip_distill as cd
from clip_distill.system.npm import Package, fetch


class Files(SimpleHTTPRequestHandler):
    def guess_type(self, path: Any) -> str:
        kinds = {".mjs": "text/javascript", ".wasm": "application/wasm"}
        return kinds.get(Path(path).suffix) or super().guess_type(path)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page_folder(tiny_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "out"
    cd.export(image_student=tiny_runs["image"], text_student=tiny_runs["text"], to="web", out=out)
    return out


@pytest.fixture
def address(page_folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(page_folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("width", "locale"), [(1280, "en-GB"), (390, "zh-CN")])
def test_words_rank_the_chosen_photos(
    width: int, locale: str, browser: Any, address: str, tiny_runs: dict[str, Path], tiny_data: Path
) -> None:
    student = cd.load(image=tiny_runs["image"], text=tiny_runs["text"])
    photos = sorted((tiny_data / "image").iterdir())[:6]
    images = student.encode_image(photos)
    words = ["a red circle", "two dogs & a cat's 3 toys"]
    scores = student.encode_text(words) @ images.T
    asked, errors = [], []
    page = browser.new_page(viewport={"width": width, "height": 800}, locale=locale)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("html[data-ready=true]", state="attached", timeout=60_000)
    page.set_input_files("#files", [str(path) for path in photos])
    page.wait_for_selector("#words:enabled", timeout=60_000)
    assert ("6 photos" if width == 1280 else "6 张照片") in page.inner_text("#indexed")
    for text, row in zip(words, scores, strict=True):
        page.fill("#words", text)
        page.wait_for_selector("#results li:nth-child(6)")
        page.wait_for_timeout(400)
        assert page.get_attribute("#results li:first-child img", "alt") == photos[int(row.argmax())].name
        items = page.query_selector_all("#results li")
        found = {item.query_selector("b").inner_text(): float(item.inner_text().split()[-1]) for item in items}
        np.testing.assert_allclose([found[path.name] for path in photos], row, atol=0.03)  # browsers resize otherwise
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert page.get_attribute("html", "lang") == ("en" if width == 1280 else "zh")
    page.click("#language")
    assert page.get_attribute("html", "lang") == ("zh" if width == 1280 else "en")
    assert {url.split(":")[0] for url in asked if not url.startswith(address)} <= {"blob", "data"}
    assert not errors


def test_what_is_no_photo_is_counted(browser: Any, address: str, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    page = browser.new_page(locale="en-GB")
    page.goto(address)
    page.wait_for_selector("html[data-ready=true]", state="attached", timeout=60_000)
    photo = sorted((tiny_data / "image").iterdir())[0]
    page.set_input_files("#files", [str(photo), str(tmp_path / "broken.jpg")])
    page.wait_for_selector("#words:enabled", timeout=60_000)
    assert "1 could not be read" in page.inner_text("#indexed")


def test_another_file_than_the_published_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x/-").mkdir(parents=True)
    (tmp_path / "x/-/x-1.0.0.tgz").write_bytes(b"something else")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", tmp_path.as_uri())
    monkeypatch.setenv("CLIP_DISTILL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"x-1.0.0.tgz: expected the SHA-512 abc, found "):
        fetch(Package("x", "1.0.0", "abc", ("dist/x.mjs",), "MIT"))
    with pytest.raises(ValueError, match=r"y 1.0.0: expected to fetch .* copy dist/y.mjs into .*cache/npm/y/1.0.0"):
        fetch(Package("y", "1.0.0", "abc", ("dist/y.mjs",), "MIT"))
