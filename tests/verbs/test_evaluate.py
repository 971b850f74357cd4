"""`clip-distill evaluate` on real small files, by its command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_distill.cli import main as cli
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import count_parameters, save_tower


def embed(data: Path, teacher: str, store: Path) -> None:
    options = ["--split", "val", "--workers", "0", "--device", "cpu", "--dtype", "float32"]
    cli.main(["embed", "--data", str(data), "--teacher", teacher, "--store", str(store), *options])


def evaluate(data: Path, out: Path, *options: object) -> dict[str, Any]:
    arguments = ["--data", data, "--out", out, "--workers", "0", "--device", "cpu", *options]
    cli.main(["evaluate", *map(str, arguments)])
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return report


def test_four_pairings_from_a_store(
    tiny_store: Path, tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = ["--image_student", tiny_runs["image"], "--text_student", tiny_runs["text"]]
    report = evaluate(tiny_data, tmp_path / "new/r.json", "--store", tiny_store, *students)
    pairs = [(pair["image"], pair["text"]) for pair in report["pairings"]]
    assert sorted(pairs) == [(i, t) for i in ("student", "teacher") for t in ("student", "teacher")]
    assert pairs[0] == ("teacher", "teacher")
    assert report["data"] == {
        "split": "val",
        "images": 8,
        "captions": 24,
        "images_without_caption": 0,
        "skipped_images": {},
        "dropped_captions": 0,
    }
    for tower, student in report["students"].items():
        assert student["name"] == str(tiny_runs[tower])
        assert -1 <= student["mean_cosine"] < 0.99 and 0 < student["neighbour_overlap"] <= 1
    printed = capsys.readouterr().out
    for pair in report["pairings"]:
        assert f"{pair['mean_recall']:.1f}" in printed


def test_store_and_teacher_give_the_same_numbers(
    tiny_store: Path, tiny_teacher: str, tiny_data: Path, tmp_path: Path
) -> None:
    stored = evaluate(tiny_data, tmp_path / "a.json", "--store", tiny_store)
    loaded = evaluate(tiny_data, tmp_path / "b.json", "--teacher", tiny_teacher)
    assert stored["pairings"] == loaded["pairings"]
    towers = {tower: load_teacher(tiny_teacher, tower)[1] for tower in ("image", "text")}
    counted = {tower: count_parameters(module) for tower, module in towers.items()}
    assert stored["teacher"]["parameters"] == loaded["teacher"]["parameters"] == counted
    assert stored["teacher"]["weights_sha256"] == loaded["teacher"]["weights_sha256"]


def test_the_teacher_in_a_student_s_place_keeps_everything(
    tiny_store: Path, tiny_teacher: str, tiny_data: Path, tmp_path: Path
) -> None:
    students = ["--image_student", tiny_teacher, "--text_student", tiny_teacher]
    report = evaluate(tiny_data, tmp_path / "r.json", "--store", tiny_store, *students)
    first, *others = ({k: v for k, v in pair.items() if k not in ("image", "text")} for pair in report["pairings"])
    assert len(others) == 3 and all(other == first for other in others)
    for student in report["students"].values():
        assert student["mean_cosine"] == pytest.approx(1) and student["neighbour_overlap"] == 1


def test_a_student_of_another_teacher_is_refused(
    make_teacher: Callable[..., str], tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path, tiny_store: Path
) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=7)
    with pytest.raises(SystemExit, match=r"(?s)student .*weights_sha256: expected '\w+', found '\w+'"):
        evaluate(tiny_data, tmp_path / "r.json", "--teacher", other, "--text_student", tiny_runs["text"])
    # a model that says nothing of its teacher needs the teacher's width only
    report = evaluate(tiny_data, tmp_path / "r.json", "--store", tiny_store, "--text_student", other)
    assert report["students"]["text"]["mean_cosine"] < 0.9


def test_a_student_of_another_width_is_refused(
    make_teacher: Callable[..., str], tiny_data: Path, tiny_runs: dict[str, Path], tiny_store: Path, tmp_path: Path
) -> None:
    spec = dataclasses.replace(load_teacher(make_teacher(tmp_path / "t", custom_text=True), "image")[0], embed_dim=16)
    save_tower(tmp_path / "narrow", spec, spec.build())
    with pytest.raises(SystemExit, match="teacher's width 32, found 16"):
        evaluate(tiny_data, tmp_path / "r.json", "--store", tiny_store, "--image_student", tmp_path / "narrow")


def test_photos_that_cannot_be_read_are_counted_with_their_captions(
    tiny_teacher: str, tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    broken = data / "COCO/val2017" / f"{25:012d}.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    expected = {"skipped_images": {"truncated": 1}, "dropped_captions": 3, "images": 7, "captions": 21}
    embed(data, tiny_teacher, tmp_path / "store")
    for source in (["--teacher", tiny_teacher], ["--store", tmp_path / "store"]):
        report = evaluate(data, tmp_path / "r.json", *source, "--image_student", tiny_runs["image"])
        assert expected.items() <= report["data"].items()
        printed = capsys.readouterr().out
        assert "skipped 1 photos: truncated" in printed and "3 captions don't count" in printed


def test_data_that_the_store_lacks_is_an_error(tiny_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    annotations = data / "COCO/annotations/captions_val2017.json"
    coco = json.loads(annotations.read_text(encoding="utf-8"))
    coco["annotations"][0]["caption"] = "something new"
    annotations.write_text(json.dumps(coco), encoding="utf-8")
    with pytest.raises(SystemExit, match="1 of 24 missing, for instance 'something new'"):
        evaluate(data, tmp_path / "r.json", "--store", tiny_store)
    shutil.copy(data / "COCO/val2017" / f"{25:012d}.jpg", data / "COCO/val2017/new.jpg")
    with pytest.raises(SystemExit, match=r"every photo of the split, found 1 missing, for instance val2017/new\.jpg"):
        evaluate(data, tmp_path / "r.json", "--store", tiny_store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --store or --teacher"),
        (["--store", ".", "--teacher", "b"], "either --store or --teacher"),
        (["--store", ".", "--text_student", "absent/x"], "absent/x: expected a run's folder or a teacher's name"),
        (
            ["--store", ".", "--text_student", "absent"],
            "--text_student absent: expected a folder or file",
        ),
        (["--store", "."], "image-val: expected a finished store"),
        (["--store", "absent"], "--store absent: expected a folder or file, found nothing there"),
    ],
)
def test_wrong_calls_are_one_message(tiny_data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        evaluate(tiny_data, tmp_path / "r.json", *options)
    assert not (tmp_path / "r.json").exists()


def test_a_run_of_the_other_tower_is_refused(
    tiny_store: Path, tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="run of a student for images, found one for texts"):
        evaluate(tiny_data, tmp_path / "r.json", "--store", tiny_store, "--image_student", tiny_runs["text"])
