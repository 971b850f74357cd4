"""The page in a real browser: words, a photo, keys, a phone's width; nothing is asked of anyone else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clip_distill as cd
from clip_distill.photosearch.engine import Engine
from clip_distill.photosearch.index import Index
from clip_distill.photosearch.library import Filter


@pytest.fixture
def address(port: int) -> str:
    return f"http://127.0.0.1:{port}/"


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; in the end there was no error, and no request to anyone else."""
    asked: list[str] = []
    errors: list[str] = []

    def open(width: int = 1280, locale: str = "en-GB", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, locale=locale, **options)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#results button")
        return page

    yield open
    assert not errors and not [url for url in asked if not url.startswith((address, "blob:", "data:"))]


def until(page: Any, condition: Callable[[], bool]) -> None:
    """Wait, half a minute at most; the page's policy forbids what Playwright would evaluate in it."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited for half a minute in vain"
        page.wait_for_timeout(20)


def order(page: Any) -> list[int]:
    """Ids of the photos that are shown."""
    return [int(each.get_attribute("data-id")) for each in page.query_selector_all("#results button")]


def expected(engine: Engine, **asked: Any) -> list[int]:
    return [each["id"] for each in engine.ask(count=60, **asked)]


def test_words_bring_the_right_photos_first(opened: Callable[..., Any], engine: Engine, photos: Path) -> None:
    page = opened()
    until(page, lambda: "24 photos, the latest first" in page.inner_text("#said"))  # the count comes with the status
    page.fill("#words", "a red circle")
    until(page, lambda: "by words" in page.inner_text("#said"))
    assert order(page) == expected(engine, question="a red circle")
    page.fill("#words", "2:circle -blue")
    page.wait_for_timeout(600)
    assert order(page) == expected(engine, question="2:circle -blue")
    assert page.query_selector("#results .score").is_visible() is False
    page.click("summary")
    page.check("#scores")
    assert page.query_selector("#results .score").is_visible()
    page.select_option("#folder", index=2)
    page.wait_for_timeout(400)
    old = Filter(str(photos / "old"))
    assert order(page) == expected(engine, question="2:circle -blue", only=old)
    page.fill("#since", "2199-01-01")
    page.wait_for_timeout(400)
    assert order(page) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_photo_is_dropped_or_chosen(width: int, opened: Callable[..., Any], engine: Engine, photos: Path) -> None:
    page, path = opened(width), sorted(photos.rglob("*.*"))[5]
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#asked-image", state="visible")
    until(page, lambda: "by words" in page.inner_text("#said"))
    assert order(page) == expected(engine, photo=path.read_bytes())
    page.click("#drop-photo")
    until(page, lambda: "the latest" in page.inner_text("#said"))
    data = page.evaluate_handle(
        "async (bytes) => { const t = new DataTransfer(); "
        "t.items.add(new File([new Uint8Array(bytes)], 'photo.png', {type: 'image/png'})); return t }",
        list(path.read_bytes()),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    until(page, lambda: "by words" in page.inner_text("#said"))
    assert order(page) == expected(engine, photo=path.read_bytes())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


def test_chinese_is_its_own_language(opened: Callable[..., Any], engine: Engine) -> None:
    page = opened(390, "zh-CN", color_scheme="dark")
    assert page.get_attribute("html", "lang") == "zh-CN" and page.title() == "照片搜索"
    page.fill("#words", "一只狗")
    until(page, lambda: "按词" in page.inner_text("#said"))
    assert order(page) == expected(engine, question="一只狗")
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en" and "by words" in page.inner_text("#said")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(19, 22, 25)"


def test_keys_alone_suffice(opened: Callable[..., Any], engine: Engine) -> None:
    page = opened()
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.type("a green bar")
    until(page, lambda: "by words" in page.inner_text("#said"))
    found = expected(engine, question="a green bar")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#large[open] #similar button")
    assert page.inner_text("#path") == engine.index.path_of(found[1])
    page.keyboard.press("ArrowRight")
    until(page, lambda: page.get_attribute("#large", "data-id") == str(found[2]))
    page.keyboard.press("Escape")
    until(page, lambda: page.evaluate("document.activeElement.dataset.id") == str(found[2]))  # where one was
    page.keyboard.press("ArrowUp")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#large[open]")
    page.keyboard.press("m")
    page.wait_for_selector("#asked-image", state="visible")
    page.wait_for_timeout(500)
    assert order(page) == expected(engine, like=found[0]) and not page.query_selector("#large[open]")


def test_every_picture_and_control_has_a_name(opened: Callable[..., Any]) -> None:
    page = opened()
    page.click("#results button")
    page.wait_for_selector("#large[open] #similar button")
    nameless = page.evaluate(
        "[...document.querySelectorAll('img:not([hidden] *), button, input:not([hidden]), select')].filter((each) => "
        "!(each.alt || each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.[0]?.textContent || "
        "each.querySelector?.('img')?.alt)).map((each) => each.outerHTML)"
    )
    assert nameless == [] and page.get_attribute("#said", "aria-live") == "polite"


def test_good_matches_stand_above_a_line(opened: Callable[..., Any], engine: Engine) -> None:
    scores = sorted((each["score"] for each in engine.ask("a dog", count=60)), reverse=True)
    engine.score = (scores[1] + scores[2]) / 2
    page = opened()
    page.fill("#words", "a dog")
    page.wait_for_selector(".heading")
    headings = page.eval_on_selector_all(
        "#results li", "(all) => all.map((each) => each.classList.contains('heading'))"
    )
    assert headings[0] and headings[3] and sum(headings) == 2


def test_the_teachers_order_at_a_click(
    opened: Callable[..., Any], engine: Engine, tiny_runs: dict[str, Path], tmp_path: Path, photos: Path
) -> None:
    other = cd.load(image=tiny_runs["image"], text=tiny_runs["text"], device="cpu")
    engine.beside = Engine(other, Index(tmp_path / "beside", {"student": "other", "dim": 32}), [str(photos)])
    engine.beside.bring_up_to_date()
    page = opened()
    page.fill("#words", "a red circle")
    until(page, lambda: "by words" in page.inner_text("#said"))
    assert order(page) == expected(engine, question="a red circle")
    page.click("#whose")
    theirs = [each["id"] for each in engine.by_teacher(question="a red circle", count=60)]
    until(page, lambda: order(page) == theirs)
    assert page.get_attribute("#whose", "aria-pressed") == "true" and theirs != expected(
        engine, question="a red circle"
    )
