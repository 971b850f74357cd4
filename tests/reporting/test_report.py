"""`clip-distill report`: the page says what `evaluate` measures, and a real browser finds nothing wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.reporting.findings import curves, seconds_of
from clip_distill.verbs.fit import show


@pytest.fixture(scope="module")
def page(
    tiny_runs: dict[str, Path], tiny_data: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    pytest.importorskip("matplotlib")
    pytest.importorskip("imagehash")
    out = tmp_path_factory.mktemp("report") / "page.html"
    runs = [str(tiny_runs["image"]), str(tiny_runs["text"])]
    places = ["--data", str(tiny_data), "--store", str(tiny_store), "--device", "cpu", "--workers", "0"]
    cli.main(["report", *runs, *places, "--out", str(out)])
    return out


def test_its_figures_are_those_of_evaluate(
    page: Path, tiny_runs: dict[str, Path], tiny_data: Path, tiny_store: Path
) -> None:
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    expected = cd.evaluate(**students, data=tiny_data, store=tiny_store, device="cpu", workers=0)
    pairs = {(pair["image"], pair["text"]): pair for pair in expected.pairings}
    image, text = found["runs"]
    for run, pair in ((image, ("student", "teacher")), (text, ("teacher", "student"))):
        for name, value in run["recall"].items():
            assert value["student"][0] == pytest.approx(pairs[pair][name])
            assert value["teacher"][0] == pytest.approx(pairs["teacher", "teacher"][name])
        student = expected.students[run["tower"]]
        assert run["cosine"] == pytest.approx(student["mean_cosine"])
        assert run["parameters"] == student["parameters"]
    assert found["both"]["recall"]["t2i_r1"]["student"][0] == pytest.approx(pairs["student", "student"]["t2i_r1"])
    for query in (*text["lost"], *text["gained"]):
        assert query["teacher"]["rank"] != query["student"]["rank"]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_finds_no_fault(width: int, browser: Any, page: Path) -> None:
    asked, errors = [], []
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.goto(page.as_uri())
    pictures = shown.query_selector_all("img, svg[role=img]")
    assert len(pictures) > 12
    assert all(each.get_attribute("alt") or each.get_attribute("aria-label") for each in pictures)
    assert all(each.evaluate("node => node.naturalWidth > 0") for each in shown.query_selector_all("img"))
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert "of the teacher's mean recall" in shown.inner_text(".verdict >> nth=0")
    assert not errors and {url.split(":")[0] for url in asked} <= {"file", "data"}


def test_chinese_and_defaults_from_the_run(
    tiny_runs: dict[str, Path], tiny_data: Path, tiny_store: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("imagehash")
    run = Path(shutil.copytree(tiny_runs["text"], tmp_path / "run"))
    recipe = {"tower": "text", "data": str(tiny_data), "store": str(tiny_store), "loss": {"names": ["cosine"]}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    written = cd.report([run], language="zh", device="cpu", workers=0)
    assert written == run / "report.html"
    text = written.read_text(encoding="utf-8")
    assert "文本学生保留了教师平均召回率的" in text and '<html lang="zh">' in text


def test_curves_are_read_from_lightnings_table() -> None:
    rows = [
        {"step": "9", "lr-AdamW": "0.001", "train/loss": "", "val/mean_recall": ""},
        {"step": "9", "lr-AdamW": "", "train/loss": "2.5", "val/mean_recall": ""},
        {"step": "19", "lr-AdamW": "", "train/loss": "1.5", "val/mean_recall": "40"},
    ]
    expected = {"loss": [[9.0, 2.5], [19.0, 1.5]], "mean recall": [[19.0, 40.0]], "learning rate": [[9.0, 0.001]]}
    assert curves(rows) == expected and curves([]) == {}


def test_what_it_cannot_say(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    places: dict[str, Any] = {"device": "cpu", "workers": 0}
    with pytest.raises(ValueError, match=r"expected a page, \*.html, found x.txt"):
        cd.report([tiny_runs["text"]], store="store", out="x.txt", **places)
    with pytest.raises(ValueError, match="expected --store, since .* has no recipe.yaml"):
        cd.report([tmp_path], **places)
    with pytest.raises(ValueError, match="expected a finished run or an export, found neither"):
        from clip_distill.verbs.report import towers_of

        towers_of(tmp_path)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_run_ends_with_its_page(
    tower: str, tiny_data: Path, tiny_views_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("imagehash")
    monkeypatch.setattr("clip_distill.verbs.fit.show", show)
    sizes = {"image": {"width": 16, "layers": 1, "heads": 2, "patch_size": 16, "input_resolution": 32}}
    sizes["text"] = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
    given: dict[str, Any] = {"tower": tower, "data": tiny_data, "store": tiny_views_store, "preset": "none"}
    given |= {"student.options": sizes[tower], "loader.workers": 0, "loader.batch_size": 8, "overwrite": True}
    given |= {"out": tmp_path, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    cd.fit(**given, report=False)
    assert not list(tmp_path.glob("report.*"))
    run = cd.fit(**given)
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (tmp_path / "report.html").stat().st_size > 20_000 and found["runs"][0]["tower"] == tower
    assert found["runs"][0]["recall"]["mean_recall"]["student"][0] == pytest.approx(run.mean_recall)
    assert 0 < found["runs"][0]["seconds"] < 60


def test_seconds_of_an_interrupted_run_are_those_of_its_parts() -> None:
    assert seconds_of([{"train/seconds": value} for value in ("3", "", "5", "2", "4.5")]) == 9.5
    assert seconds_of([{"train/loss": "1"}]) is None
