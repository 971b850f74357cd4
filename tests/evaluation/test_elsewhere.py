"""`evaluate --elsewhere`: the teacher agrees with itself anywhere, a random student with nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import clip_distill as cd
from clip_distill.evaluation.elsewhere import measures, same_first, spaced, warnings_of
from clip_distill.evaluation.report import EvaluationReport


@pytest.fixture
def asked(tiny_data: Path, tiny_store: Path) -> dict[str, Any]:
    return {"data": tiny_data, "store": tiny_store, "device": "cpu", "workers": 0}


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    file = tmp_path / "searches.txt"
    file.write_text("birthday cake\na black labrador\npassport\nbirthday cake\n", encoding="utf-8")
    return file


def test_the_teacher_agrees_with_itself_on_words_texts_and_photos(
    asked: dict[str, Any], tiny_teacher: str, tiny_data: Path, sentences: Path
) -> None:
    places = ["words", sentences, tiny_data / "image"]
    report = cd.evaluate(**asked, image_student=tiny_teacher, text_student=tiny_teacher, elsewhere=places)
    found = report.numbers["elsewhere"]
    assert [(each["place"], each["tower"], each["inputs"]) for each in found] == [
        ("words", "text", 1000),
        (str(sentences), "text", 3),
        (str(tiny_data / "image"), "image", 24),
    ]
    for each in found:
        for figures in (each, each["validation"]):
            assert figures["cosine"] == pytest.approx(1, abs=1e-5)
            assert figures["neighbours"] == pytest.approx(100, abs=1) and figures["same"] == pytest.approx(100, abs=1)
        assert each["trusted"]
    assert "elsewhere (in brackets: on validation)" in str(report) and "don't trust" not in str(report)


def test_where_a_student_disagrees_it_is_not_to_be_trusted(
    asked: dict[str, Any], tiny_runs: dict[str, Path], sentences: Path
) -> None:
    with pytest.raises(cd.InvalidValue, match=r"searches\.txt: expected --text_student"):
        cd.evaluate(**asked, image_student=tiny_runs["image"], elsewhere=[sentences])
    with pytest.raises(cd.InvalidValue, match="found nothing at nowhere"):
        cd.evaluate(**asked, text_student=tiny_runs["text"], elsewhere=["nowhere"])
    report = cd.evaluate(**asked, text_student=tiny_runs["text"], elsewhere=["words"])
    record = report.numbers["elsewhere"][0]
    assert record["neighbours"] < 20 and record["same"] is not None
    record["trusted"] = False  # whatever chance made of 8 photos
    assert "don't trust the text student on words" in str(EvaluationReport(report.numbers))


def test_photos_alone_are_compared_with_what_was_held_out(
    tiny_data: Path, tiny_views_store: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    report = cd.evaluate(
        sources=cd.Sources(train_images=str(tiny_data / "image")),
        store=tiny_views_store,
        image_student=tiny_runs["image"],
        elsewhere=[tiny_data / "COCO/val2017"],
        device="cpu",
        workers=0,
    )
    record = report.numbers["elsewhere"][0]
    assert record["inputs"] == 8 and record["same"] is None and record["validation"]["cosine"] is not None


def test_same_answers_by_hand() -> None:
    among = torch.eye(20)
    theirs = torch.zeros(1, 20)
    theirs[0, :10] = torch.arange(10, 0, -1.0)
    own = theirs.roll(3, 1)  # of its first ten answers seven are the teacher's
    assert same_first(own, theirs, among) == pytest.approx(70)
    assert measures(torch.eye(4), torch.eye(4), None)["same"] is None


def test_what_is_compared_is_spread_evenly() -> None:
    assert spaced(3) == [0, 1, 2]
    rows = spaced(5000)
    assert len(rows) == 1000 and rows[0] == 0 and rows[-1] == 4999


def test_only_places_without_trust_are_warned_of() -> None:
    places = [{"place": "a", "tower": "text", "trusted": True}, {"place": "b", "tower": "image", "trusted": False}]
    assert len(warnings_of(places)) == 1 and "image student on b" in warnings_of(places)[0]
