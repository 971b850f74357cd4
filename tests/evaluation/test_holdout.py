"""Rows that are held out to measure by: chosen by content, apart from training, stable as data grows."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import clip_distill as cd
from clip_distill.batches.datasets import Captions, Images
from clip_distill.cli import main as cli
from clip_distill.evaluation.holdout import FEWEST, HeldOut, choose, key_of, places_of
from clip_distill.evaluation.recall import match_metrics
from clip_distill.recipe import Loader, Recipe, Student
from clip_distill.towers.spec import Tower
from clip_distill.train.assemble import assemble

SIZES = {
    "image": {"input_resolution": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2},
    "text": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2},
}


@pytest.fixture(scope="module")
def photos(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, three of them twice, and nothing else."""
    folder = tmp_path_factory.mktemp("photos")
    shutil.copytree(tiny_data / "image", folder / "image")
    for photo in sorted((folder / "image").iterdir())[:3]:
        shutil.copy(photo, photo.with_name(f"copy-{photo.name}"))
    return folder


@pytest.fixture(scope="module")
def sentences(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of captions, one of them also in capitals, and nothing else."""
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "CC").mkdir()
    text = (tiny_data / "CC/Train_GCC-training.tsv").read_text(encoding="utf-8")
    (folder / "CC/Train_GCC-training.tsv").write_text(text + text.splitlines()[0].upper() + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stores(
    photos: Path, sentences: Path, tiny_teacher: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[Tower, tuple[Path, Path]]:
    """Tower → data, and its store, made by the default command."""
    root = tmp_path_factory.mktemp("stores")
    made: dict[Tower, tuple[Path, Path]] = {}
    for tower, data in (("image", photos), ("text", sentences)):
        cd.embed(data=data, teacher=tiny_teacher, store=root / tower, workers=0, device="cpu")
        made[tower] = data, root / tower  # type: ignore[index]
    return made


def fit(tower: Tower, stores: dict[Tower, tuple[Path, Path]], out: Path, epochs: int, **keys: Any) -> cd.Run:
    """A small student of a tower, trained on what there is of that tower alone."""
    data, store = stores[tower]
    student, loader = {"options": SIZES[tower]}, {"workers": 0, "batch_size": 4}
    trainer = {"max_epochs": epochs, "accelerator": "cpu"}
    places = {"data": data, "store": store, "out": out}
    return cd.fit(preset="none", tower=tower, **places, student=student, loader=loader, trainer=trainer, **keys)


def test_embed_says_what_is_missing_and_embeds_the_rest(
    photos: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cd.embed(data=photos, teacher=tiny_teacher, store=tmp_path, workers=0, device="cpu")
    told = capsys.readouterr().out
    for line in ("no captions to train on", "no photos to validate on", "(--holdout)"):
        assert line in told
    assert [path.name for path in tmp_path.iterdir()] == ["image-train"]
    with pytest.raises(cd.NotFound, match="expected captions"):
        cd.embed(data=photos, teacher=tiny_teacher, store=tmp_path, tower="text")
    with pytest.raises(cd.NotFound, match="expected photos"):
        cd.embed(data=photos, teacher=tiny_teacher, store=tmp_path, split="val")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_what_is_held_out_is_not_trained_on_nor_are_its_copies(
    tower: Tower, stores: dict[Tower, tuple[Path, Path]]
) -> None:
    data, store = stores[tower]
    student = Student(options=dict(SIZES[tower]))
    recipe = Recipe(tower, str(data), str(store), "unused", student, loader=Loader(workers=0), holdout=0.4)
    module, loaders = assemble(recipe)
    assert isinstance(module.validation, HeldOut)
    assert module.validation.own.shape == (len(loaders.val), 32)
    if isinstance(loaders.train, Images) and isinstance(loaders.val, Images):
        assert loaders.train.digests is not None and loaders.val.digests is not None
        sides = [set(each.digests.to_pylist()) for each in (loaders.train, loaders.val)]
        assert len(sides[1]) == len(loaders.val), "no photo is measured twice"
    else:
        assert isinstance(loaders.train, Captions) and isinstance(loaders.val, Captions)
        sides = [{tuple(row) for row in each.tokens.pad(0, 77).tolist()} for each in (loaders.train, loaders.val)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 24
    assert 5 <= len(sides[1]) <= 19


@pytest.mark.parametrize("target", ["stored", "online"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_tower_is_distilled_from_nothing_else(
    tower: Tower,
    target: str,
    stores: dict[Tower, tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fit(tower, stores, tmp_path, epochs=8, target=target, optimizer={"lr": 1e-2})
    printed = capsys.readouterr().out
    assert "are held out (--holdout 0.05)" in printed and "agreement" in printed
    with open(tmp_path / "logs/metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val/cosine"]]
    assert len(rows) == 8
    for name in ("match_r1", "match_r5", "match_r10", "mean_match", "neighbours", "agreement"):
        assert all(0 <= float(row[f"val/{name}"]) <= 100 for row in rows)
    assert float(rows[-1]["val/cosine"]) > float(rows[0]["val/cosine"])
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    matches = [float(row["val/agreement"]) for row in rows]
    assert best["epoch"] == matches.index(max(matches))
    assert run.mean_recall == pytest.approx(max(matches))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))["holdout"] == 0.05


def test_a_row_stays_on_its_side_as_data_grows() -> None:
    before = places_of([f"photo {number}" for number in range(2000)])
    after = places_of([f"photo {number}" for number in range(6000)])
    held, later = choose(before, 0.05), choose(after, 0.05)
    assert 70 < held.sum() < 130
    np.testing.assert_array_equal(held, later[:2000])


def test_no_more_than_two_thousand_are_held_out_and_none_comes_back_to_them() -> None:
    before, after = (choose(places_of([str(i) for i in range(count)]), 0.05) for count in (60_000, 90_000))
    assert before.sum() == after.sum() == 2000
    assert not (after[:60_000] & ~before).any()


def test_few_rows_give_up_ten_or_half() -> None:
    assert choose(places_of([str(i) for i in range(40)]), 0.01).sum() == FEWEST
    assert choose(places_of([str(i) for i in range(6)]), 0.01).sum() == 3
    with pytest.raises(ValueError, match="at least 4 different photos or captions to train on, found 3"):
        choose(places_of(["a", "b", "c", "a"]), 0.05)


def test_copies_have_one_key() -> None:
    assert key_of("A  Dog ", None) == key_of("a dog", None) != key_of("a cat", None)
    assert key_of("one.jpg", 7) == key_of("two.jpg", 7) != key_of("one.jpg", 8)


def test_match_by_hand() -> None:
    """Two of four students are nearest to their own teacher's embedding, one is second, one is last."""
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    student = torch.tensor([[1.0, 0.1], [0.1, 1.0], [-0.6, 0.8], [0.1, 1.0]])
    assert match_metrics(student, teacher) == {"match_r1": 50, "match_r5": 100, "match_r10": 100} | {
        "mean_match": pytest.approx(250 / 3)
    }
    same = HeldOut(teacher).metrics(teacher)
    assert same["mean_match"] == same["neighbours"] == same["agreement"] == 100
    assert same["cosine"] == pytest.approx(1)


def test_a_share_of_nothing_is_refused(stores: dict[Tower, tuple[Path, Path]], tmp_path: Path) -> None:
    data, store = stores["image"]
    with pytest.raises(SystemExit, match="holdout: expected a share above 0 and below 1, found 0"):
        places = ["--data", str(data), "--store", str(store), "--out", str(tmp_path)]
        cli.main(["fit", "--preset", "none", "--tower", "image", *places, "--holdout", "0"])


def test_two_students_together_need_pairs(
    stores: dict[Tower, tuple[Path, Path]], tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    data, store = stores["image"]
    students = {f"{tower}_student": run for tower, run in tiny_runs.items()}
    with pytest.raises(cd.NotFound, match="expected captions"):
        cd.fit(tower="both", data=data, store=store, out=tmp_path, **students)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_evaluate_measures_by_the_rows_that_fit_held_out(
    tower: Tower, stores: dict[Tower, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, store = stores[tower]
    run = fit(tower, stores, tmp_path / "run", epochs=2, holdout=0.3)
    student = {f"{tower}_student": run}
    report = cd.evaluate(
        data=data, store=store, holdout=0.3, workers=0, device="cpu", out=tmp_path / "r.json", **student
    )
    found = report.to_dict()
    assert found["pairings"] == [] and found["data"]["split"] == "held out"
    student_found = found["students"][tower]
    agreed = (student_found["match"]["mean_match"] + 100 * student_found["neighbour_overlap"]) / 2
    assert agreed == pytest.approx(run.mean_recall, abs=1e-4)
    capsys.readouterr()
    report.show()
    shown = capsys.readouterr().out
    assert "(held out)" in shown and "match" in shown and "R@10" in shown
    other = "text" if tower == "image" else "image"
    with pytest.raises(cd.InvalidValue, match="expected the run of a student"):
        cd.evaluate(data=data, store=store, **{f"{other}_student": run})


def test_without_students_evaluate_wants_photos_with_captions(stores: dict[Tower, tuple[Path, Path]]) -> None:
    data, store = stores["image"]
    with pytest.raises(cd.NotFound, match="expected photos"):
        cd.evaluate(data=data, store=store)
