"""`clip-distill drop-in`: a verdict, an exit status, a curve, and a score in an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clip_distill as cd
from clip_distill.cli import main as cli

CAPTIONS = "COCO/annotations/captions_val2017.json"


def check(store: Path, data: Path, *options: str, queries: Path | None = None) -> int:
    """The command's exit status."""
    words = ["--index", str(store), "--queries", str(queries or data / CAPTIONS), "--device", "cpu", "--workers", "0"]
    try:
        cli.main(["drop-in", *words, *options])
    except SystemExit as end:
        assert isinstance(end.code, int), end.code
        return end.code
    return 0


@pytest.fixture(scope="module")
def found_by_teacher(tiny_data: Path, tiny_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries, each with the photo that the random teacher finds first."""
    teacher = cd.load(tiny_teacher, device="cpu")
    photos = sorted((tiny_data / "COCO/val2017").iterdir())
    texts = [caption["caption"] for caption in json.loads((tiny_data / CAPTIONS).read_text())["annotations"]]
    rows = (teacher.encode_text(texts) @ teacher.encode_image(photos).T).argmax(1)
    file = tmp_path_factory.mktemp("queries") / "queries.tsv"
    lines = [f"{text}\t{photos[row].name}" for text, row in zip(texts, rows, strict=True)]
    file.write_text("\n".join(["caption\timage", *lines, "elsewhere\tnone.jpg"]), encoding="utf-8")
    return file


def test_the_teacher_itself_may_stay_and_a_random_student_may_not(
    tiny_store: Path,
    tiny_data: Path,
    tiny_teacher: str,
    tiny_runs: dict[str, Path],
    found_by_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check(tiny_store, tiny_data, "--text_student", tiny_teacher, queries=found_by_teacher) == 0
    assert "yes: the index as it is keeps 100%" in capsys.readouterr().out
    out = tmp_path / "found.json"
    student = ("--text_student", str(tiny_runs["text"]))
    assert check(tiny_store, tiny_data, *student, "--out", str(out), queries=found_by_teacher) == 4
    shown, numbers = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
    assert "no: the index as it is keeps" in shown and "worth showing, after: from" in shown
    assert numbers["queries"] == {"count": 24, "known": True, "dropped": 1}
    assert numbers["stages"]["before"]["recall"]["r1"] == 100
    assert numbers["stages"]["before"]["same"]["first_5"] == 100
    assert set(numbers["thresholds"]) == {"before", "after"}
    drawing = (tmp_path / "found.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<?xml") and "</svg>" in drawing and "var(--student)" in drawing


def test_an_image_student_is_measured_among_the_old_photos_and_alone(
    tiny_store: Path, tiny_data: Path, tiny_teacher: str
) -> None:
    report = cd.drop_in(
        index=tiny_store,
        queries=tiny_data / CAPTIONS,
        image_student=tiny_teacher,
        photos=tiny_data / "COCO/val2017",
        device="cpu",
        workers=0,
    )
    assert report.verdict == "yes" and set(report.numbers["stages"]) == {"before", "after", "re-indexed"}
    assert report.numbers["stages"]["re-indexed"]["recall"] == report.numbers["stages"]["before"]["recall"]


def test_texts_alone_compare_answers(
    tiny_store: Path, tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "queries.txt").write_text("a red circle\na green bar\n", encoding="utf-8")
    options = ("--text_student", str(tiny_runs["text"]), "--same", "0")
    assert check(tiny_store, tiny_data, *options, queries=tmp_path / "queries.txt") == 0
    shown = capsys.readouterr().out
    assert "2 queries without known answers" in shown and "R@1" not in shown and "of the first ten answers" in shown


def test_the_score_goes_into_an_export(
    tiny_store: Path, tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    export = tmp_path / "shipped"
    cd.export(text_student=tiny_runs["text"], to="onnx", out=export)
    found: dict[str, Any] = {"index": tiny_store, "device": "cpu", "text_student": export}
    report = cd.drop_in(**found, queries=tiny_data / CAPTIONS, export=export)
    score = json.loads((export / "export.json").read_text(encoding="utf-8"))["score"]
    assert score["threshold"] == report.numbers["thresholds"]["after"]["threshold"]
    (tmp_path / "queries.txt").write_text("a red circle\n", encoding="utf-8")
    with pytest.raises(cd.InvalidValue, match="to find a score; found texts alone"):
        cd.drop_in(**found, queries=tmp_path / "queries.txt", export=export)
    with pytest.raises(cd.InvalidValue, match="a folder that `clip-distill export` wrote"):
        cd.drop_in(**found, queries=tiny_data / CAPTIONS, export=tmp_path)


def test_what_is_lacking_is_told(tiny_store: Path, tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"index": tiny_store, "queries": tiny_data / CAPTIONS}
    with pytest.raises(cd.InvalidValue, match="expected a student"):
        cd.drop_in(**asked)
    with pytest.raises(cd.InvalidValue, match="found 8 of 8 missing, such as .* name their folder, --photos DIR"):
        cd.drop_in(**asked, image_student=tiny_runs["image"])
