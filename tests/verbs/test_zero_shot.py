"""`clip-distill zero-shot` on drawn photos, against clip_benchmark's own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.evaluation.classes import TEMPLATES

COLOURS = ("blue", "green", "red", "white")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four class folders of six photos each, and one that can't be read."""
    root = tmp_path_factory.mktemp("classes")
    for place, colour in enumerate(COLOURS):
        (root / colour).mkdir()
        for number in range(6):
            size = (40 + number, 50 - 3 * place)
            Image.new("RGB", size, colour).resize((48, 40)).save(root / colour / f"{number}.png")
    (root / "red/broken.jpg").write_bytes(b"no photo")
    return root


def test_accuracies_equal_those_of_clip_benchmark(photos: Path, tiny_teacher: str, tmp_path: Path) -> None:
    classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    from sklearn.metrics import accuracy_score  # comes with it

    noisy = tmp_path / "noisy"
    shutil.copytree(photos, noisy)
    for place, path in enumerate(sorted(noisy.rglob("*.png"))):  # blots, that the random teacher tells apart
        blots = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(place)) * 255
        Image.fromarray(blots.permute(1, 2, 0).byte().numpy()).resize((48, 40), Image.Resampling.NEAREST).save(path)
    report = cd.zero_shot(photos=noisy, teacher=tiny_teacher, templates="clip", device="cpu", workers=0)
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_teacher)
    tokenizer = open_clip.get_tokenizer(tiny_teacher)
    pictures = [path for path in sorted(noisy.rglob("*.png"))]
    pixels = torch.stack([preprocess(Image.open(path)) for path in pictures])
    labels = torch.tensor([COLOURS.index(path.parent.name) for path in pictures])
    loader: DataLoader[Any] = DataLoader(TensorDataset(pixels, labels), batch_size=5)
    templates = [template.replace("{}", "{c}") for template in TEMPLATES["clip"]]
    weights = classification.zero_shot_classifier(model.eval(), tokenizer, list(COLOURS), templates, "cpu", amp=False)
    # its logits and its metrics, by scikit-learn; its own top-k needs a NumPy older than 2.4
    logits, right = classification.run_classification(model, weights, loader, "cpu", amp=False)
    top1 = accuracy_score(right, logits.argmax(1))
    per_class = classification.balanced_accuracy_score(right, logits.argmax(1))
    found = report.pairings[0]
    assert report.numbers["skipped_images"] and report.numbers["count"] == 24
    assert found["top1"] == pytest.approx(100 * top1, abs=0.1)
    assert found["mean_per_class"] == pytest.approx(100 * per_class, abs=0.1)
    assert 0 < found["top1"] < 100 and len(found["confused"]) > 3  # not one class for all, equal by chance


def test_average_precision_equals_that_of_clip_benchmark() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification").average_precision_per_class
    from clip_distill.evaluation.zero_shot import multilabel

    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 5, generator=generator) * 2 - 1
    labels = torch.rand(40, 5, generator=generator) < 0.3
    expected = 100 * theirs(scores, labels)
    assert multilabel(scores, labels)["per_class"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_students_stand_in_all_pairings(
    photos: Path, tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    argv = ["zero-shot", "--photos", str(photos), "--device", "cpu", "--workers", "0", "--out", str(out)]
    cli.main([*argv, "--image_student", str(tiny_runs["image"]), "--text_student", str(tiny_runs["text"])])
    shown, numbers = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
    assert [(pair["image"], pair["text"]) for pair in numbers["pairings"]] == [
        ("teacher", "teacher"),
        ("teacher", "student"),
        ("student", "teacher"),
        ("student", "student"),
    ]
    assert numbers["pairings"][0]["agreement"] == 100 and len(numbers["pairings"][3]["per_class"]) == 4
    assert "24 photos, 4 classes" in shown and "skipped 1 photos" in shown and "top-1" in shown


def test_photos_without_labels_tell_how_often_both_agree(
    photos: Path, tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("red\nblue\n", encoding="utf-8")
    argv = ["--photos", str(photos / "red"), "--classes", str(classes), "--templates", "none", "--device", "cpu"]
    cli.main(["zero-shot", *argv, "--workers", "0", "--text_student", str(tiny_runs["text"])])
    shown = capsys.readouterr().out
    assert "no labels" in shown and "same as the" in shown and "top-1" not in shown


def test_a_student_of_another_teacher_is_refused(
    photos: Path, tiny_runs: dict[str, Path], tiny_plain_teacher: str
) -> None:
    with pytest.raises(cd.Error, match="was made from something else"):
        cd.zero_shot(photos=photos, image_student=tiny_runs["image"], teacher=_other(tiny_plain_teacher), workers=0)


def _other(teacher: str) -> str:
    """The same model with other weights."""
    from safetensors.torch import load_file, save_file

    folder = Path(teacher.removeprefix("local-dir:"))
    copy = folder.with_name("other-teacher")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file({name: value + 0.5 for name, value in weights.items()}, copy / "open_clip_model.safetensors")
    return f"local-dir:{copy}"


def test_somebody_must_name_the_teacher(photos: Path) -> None:
    with pytest.raises(cd.InvalidValue, match="expected --teacher"):
        cd.zero_shot(photos=photos)
