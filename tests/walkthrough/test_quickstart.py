from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from clip_distill.cli.main import main
from clip_distill.teachers import load_teacher
from clip_distill.tokens.prompts import made_up
from clip_distill.towers.spec import count_parameters, load_tower
from clip_distill.verbs import run
from clip_distill.walkthrough import flow
from clip_distill.walkthrough.material import Material
from clip_distill.walkthrough.scenes import draw_dataset
from clip_distill.walkthrough.teacher import captions_by_photo, read_pixels, train_teacher

TINY = replace(flow.Budget(), photos=96, val_photos=12, teacher_epochs=1, image_samples=192, text_samples=768)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("scenes") / "data", train=96, val=8, seed=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return out, flow.run(out, None, None, 0, TINY, run)


def test_the_teacher_learns_and_open_clip_loads_it(scenes: Path, tmp_path: Path) -> None:
    losses = train_teacher(scenes, tmp_path / "teacher", epochs=8, batch_size=16, lr=2e-3, seed=0)
    assert len(losses) == 8 * 6
    assert losses[0] == pytest.approx(math.log(16), abs=0.8), "it starts at chance"
    assert sum(losses[-6:]) / 6 < 0.75 * sum(losses[:6]) / 6
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'teacher'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'teacher'}")
    coco = json.loads((scenes / "COCO/annotations/captions_train2017.json").read_text())
    names = [image["file_name"] for image in coco["images"]][:16]
    captions = [a["caption"] for a in coco["annotations"] if a["id"] % 2 == 0][:16]
    photos = torch.stack([preprocess(Image.open(scenes / "image" / name)) for name in names])
    with torch.no_grad():
        images, texts = model.eval().encode_image(photos, True), model.encode_text(tokenizer(captions), True)
    right = (texts @ images.T).argmax(1) == torch.arange(16)
    assert right.float().mean() > 3 / 16, "what was learnt is in the folder; chance is 1 of 16"


def test_a_teacher_is_kept_only_for_the_same_arguments(scenes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "teacher/open_clip_model.safetensors"
    losses = train_teacher(scenes, tmp_path / "teacher", epochs=1, batch_size=32)
    first = weights.read_bytes()
    made = weights.stat().st_mtime_ns
    assert train_teacher(scenes, tmp_path / "teacher", epochs=1, batch_size=32) == losses
    assert weights.stat().st_mtime_ns == made
    train_teacher(scenes, tmp_path / "teacher", epochs=1, batch_size=32, seed=1)
    assert weights.read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="other files"):
        train_teacher(scenes, tmp_path / "mine", epochs=1)


def test_photos_meet_their_own_captions(scenes: Path) -> None:
    from clip_distill.corpus.layout import scan

    split = scan(str(scenes)).train
    coco = json.loads((scenes / "COCO/annotations/captions_train2017.json").read_text())
    expected = [[a["caption"] for a in coco["annotations"] if a["image_id"] == image["id"]] for image in coco["images"]]
    assert captions_by_photo(split) == expected
    assert read_pixels(split).shape == (96, 3, 64, 64)


def test_the_table_says_what_is_in_the_files(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["teacher", "image student", "text student", "both students"]
    pairings = {(p["image"], p["text"]): p for p in json.loads((out / "evaluation.json").read_text())["pairings"]}
    for name, pair in (("image student", ("student", "teacher")), ("text student", ("teacher", "student"))):
        assert rows[name]["t2i_r10"] == pairings[pair]["t2i_r10"]
    assert rows["teacher"]["kept"]["mean_recall"] == 100
    teacher = open_clip.create_model(f"local-dir:{out / 'teacher'}")
    assert rows["teacher"]["parameters"] == {
        "image": count_parameters(teacher.visual),
        "text": count_parameters(teacher.text),
    }
    students = {tower: load_tower(out / "runs" / tower)[1] for tower in ("image", "text")}
    assert rows["both students"]["parameters"] == {t: count_parameters(module) for t, module in students.items()}
    assert 2 * count_parameters(students["image"]) <= count_parameters(teacher.visual)
    assert 2 * count_parameters(students["text"]) <= count_parameters(teacher.text)
    sizes = {tower: (out / "runs" / tower / "student/tower.safetensors").stat().st_size for tower in ("image", "text")}
    assert rows["image student"]["bytes"] == sizes["image"]
    assert rows["both students"]["bytes"] == sum(sizes.values())
    assert list(result["seconds"]) == [
        *("draw scenes", "train a teacher", "embed", "fit the image student", "fit the text student"),
        *("evaluate", "export"),
    ]
    assert json.loads((out / "result.json").read_text()) == result


def test_the_exported_folder_is_both_students(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{result['exported']}")
    photo = preprocess(Image.open(out / "data/COCO/val2017/val_000000.jpg"))[None]
    tokens = open_clip.get_tokenizer(f"local-dir:{result['exported']}")(["two small red circles"])
    _, image = load_tower(out / "runs/image")
    _, text = load_tower(out / "runs/text")
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_image(photo), image(photo), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.encode_text(tokens), text(tokens), atol=1e-5, rtol=1e-4)


def test_own_data_and_teacher_and_a_second_run(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget, given = replace(flow.REAL, image_samples=24, text_samples=72), Material(data=str(tiny_data))
    out = tmp_path / "mine"
    with pytest.raises(ValueError, match="nowhere"):
        flow.run(out, given, "local-dir:nowhere", 0, budget, run)
    result = flow.run(out, given, tiny_teacher, 0, budget, run)
    assert next(iter(result["seconds"])) == "embed"
    assert not (out / "data").exists() and not (out / "teacher").exists()
    shown = capsys.readouterr().out
    for verb in ("embed", "fit --tower image", "fit --tower text", "evaluate", "export"):
        assert f"$ clip-distill {verb} " in shown
    assert "both students" in shown and f"--data {shlex.quote(str(tiny_data))}" in shown
    manifest = out / "store/image-train/manifest.json"
    made = manifest.stat().st_mtime_ns
    flow.run(out, given, tiny_teacher, 0, budget, run)
    assert manifest.stat().st_mtime_ns == made, "the store is kept"
    with pytest.raises(FileExistsError, match="seed 0, now 1"):
        flow.run(out, given, tiny_teacher, 1, budget, run)


def test_a_teacher_with_a_backbone_of_stages_gives_its_first_ones_to_the_image_student(
    tiny_data: Path, make_teacher: Callable[..., str], tmp_path: Path
) -> None:
    teacher = make_teacher(tmp_path / "teacher", custom_text=True, timm_model="test_efficientnet")
    budget, out = replace(flow.REAL, image_samples=24, text_samples=72), tmp_path / "mine"
    result = flow.run(out, Material(data=str(tiny_data)), teacher, 0, budget, run)
    _, trunk = load_tower(out / "runs/image")
    theirs = load_teacher(teacher, "image")[1].get_parameter("trunk.blocks.0.0.conv.weight")
    assert torch.equal(trunk.get_parameter("trunk.blocks.0.0.conv.weight"), theirs)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["image student"]["parameters"]["image"] < rows["teacher"]["parameters"]["image"]
    model = open_clip.create_model(f"local-dir:{result['exported']}").eval()
    photos = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(photos), trunk(photos))
    text = load_tower(out / "runs/text")[1].get_parameter("positional_embedding")
    assert torch.equal(model.text.positional_embedding, text)


@pytest.mark.parametrize("what", ["photos", "texts", "both"])
def test_photos_or_sentences_are_enough(
    what: str, tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, texts = tmp_path / "photos", tmp_path / "texts.txt"
    for i, photo in enumerate(sorted((tiny_data / "image").iterdir())):
        (photos / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (photos / f"class{i % 2}" / photo.name).write_bytes(photo.read_bytes())
    texts.write_text("".join(f"sentence number {i}\n" for i in range(40)), encoding="utf-8")
    given = {"photos": {"photos": str(photos)}, "texts": {"texts": str(texts)}}
    chosen = given["photos"] | given["texts"] if what == "both" else given[what]
    towers = {"photos": ["image"], "texts": ["text"], "both": ["image", "text"]}[what]
    out = tmp_path / "out"
    budget = replace(flow.REAL, image_samples=24, text_samples=72)
    result = flow.run(out, Material(**chosen), tiny_teacher, 0, budget, run)
    shown = capsys.readouterr().out
    assert list(result["seconds"]) == ["embed", *(f"fit the {tower} student" for tower in towers), "evaluate", "export"]
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert list(evaluation["students"]) == towers
    assert all(student["match"]["match_r10"] > 0 for student in evaluation["students"].values())
    assert result["rows"] == [] and "--preset best" in shown and "--to onnx" in shown
    model = open_clip.create_model(f"local-dir:{result['exported']}").eval()
    for tower in towers:
        own = load_tower(out / "runs" / tower)[1].get_parameter("positional_embedding")
        assert torch.equal((model.visual if tower == "image" else model.text).positional_embedding, own)


def test_a_teacher_alone_gives_a_text_student(
    tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clip_distill.tokens.prompts.TEMPLATES", ())
    monkeypatch.setattr("clip_distill.tokens.prompts.made_up", lambda words, count, seed: made_up(words, 300, seed))
    main(["quickstart", "--teacher", tiny_teacher, "--tower", "text", "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "--prompts vocabulary" in shown and "300 made-up texts" in shown
    spec, module = load_tower(tmp_path / "out/runs/text")
    assert spec.tokenizer["source"] == "clip" and spec.cfg["vocab_size"] == 49408
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out/exported'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out/exported'}")(["a dog", "two cats"])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), module(tokens), atol=1e-5, rtol=1e-4)


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    new = ["quickstart", "--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit, match="expected --teacher and one of --data, --photos and --texts"):
        main([*new, "--data", "photos"])
    with pytest.raises(SystemExit, match="expected either --data, or --photos and --texts"):
        main([*new, "--data", "photos", "--photos", "photos", "--teacher", "ViT-B-32/openai"])
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit, match="expected photos .*found none"):
        main([*new, "--photos", str(tmp_path / "photos"), "--teacher", "ViT-B-32/openai"])
    assert not (tmp_path / "new").exists()
    (tmp_path / "photos").rmdir()
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match="found other files"):
        main(["quickstart", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_length_is_whole_epochs_or_a_part_of_one() -> None:
    assert flow.length(4000, 32_000, 64) == ("--loader.batch_size", "64", "--trainer.max_epochs", "8")
    assert flow.length(10**6, 32_000, 64)[2:] == ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "500")
    assert flow.length(31_999, 32_000, 64)[2:] == ("--trainer.max_epochs", "1")
