"""Validation from the store alone gives what `evaluate` measures with the teacher itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from clip_distill.cli import main as cli
from clip_distill.corpus.layout import Split, scan
from clip_distill.evaluation.holdout import agreement
from clip_distill.evaluation.recall import mean_cosine, retrieval_metrics
from clip_distill.evaluation.retrieval import Benchmark, encode_images, encode_texts
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError
from clip_distill.store.table import Store
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import Tower, load_tower
from clip_distill.train.validation import Validation, load_validation

CPU = torch.device("cpu")


class World(NamedTuple):
    """A validation split, and what the store has of it."""

    split: Split
    images: Store
    texts: Store


@pytest.fixture(scope="module")
def world(tiny_data: Path, tiny_store: Path) -> World:
    return World(scan(str(tiny_data)).val, *(open_table(tiny_store, tower, "val") for tower in ("image", "text")))


def encode(tower: Tower, source: str | Path, benchmark: Benchmark) -> Tensor:
    """Embeddings of all photos, or of all captions with repeats, in the benchmark's order."""
    spec, module = load_teacher(source, tower) if isinstance(source, str) else load_tower(source)
    if tower == "image":
        return encode_images(spec, module.eval(), benchmark.images, CPU, workers=0)[0]
    return encode_texts(spec, module.eval(), benchmark.captions, CPU)


def split_of(images: pa.Table, captions: list[tuple[str, str | None]]) -> Split:
    names, kind = ("text", "image_id"), pa.large_string()
    columns = zip(*captions, strict=True)
    table = pa.table({name: pa.array(column, kind) for name, column in zip(names, columns, strict=True)})
    return Split(images, table, images_sought="", captions_sought="")


def cosine_only(validation: Validation) -> float:
    return validation.metrics(validation.own)["cosine"]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_metrics_are_those_of_evaluate(
    tower: Tower, world: World, tiny_teacher: str, tiny_runs: dict[str, Path]
) -> None:
    validation, table = load_validation(tower, world.images, world.texts, world.split)
    benchmark = Benchmark.of(world.split.require_images(), world.split.require_captions())
    sources: dict[Tower, str | Path] = {"image": tiny_teacher, "text": tiny_teacher} | {tower: tiny_runs[tower]}
    images, captions = (encode(side, sources[side], benchmark) for side in ("image", "text"))
    expected = retrieval_metrics(images, captions, benchmark.image_of_caption)
    if tower == "image":
        student = images
        assert table.column("id").to_pylist() == benchmark.images.column("id").to_pylist()
    else:
        student = captions[[benchmark.captions.index(text) for text in table.column("id").to_pylist()]]
    found = validation.metrics(student)
    cosine = found.pop("cosine")
    near = agreement(student, validation.own)
    assert {name: found.pop(name) for name in near} == near
    assert found == pytest.approx(expected, abs=1e-9)
    assert cosine == pytest.approx(mean_cosine(student, validation.own), abs=1e-5)
    assert found["t2i_r1"] < 100  # random towers: a test that all would pass proves nothing


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_teacher_itself_has_a_cosine_of_one(tower: Tower, world: World, tiny_teacher: str) -> None:
    validation, table = load_validation(tower, world.images, world.texts, world.split)
    assert cosine_only(validation) == pytest.approx(1, abs=1e-6)
    assert len(table) == len(validation.own)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_what_the_store_lacks_is_left_out_and_said(
    tower: Tower, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    images, captions = world.split.require_images(), world.split.require_captions()
    known = list(zip(captions["text"].to_pylist(), captions["image_id"].to_pylist(), strict=True))
    new = {"id": ["0-new.jpg"], "path": ["nowhere"], "offset": [-1], "size": [-1]}
    photos = pa.concat_tables([pa.table(new, schema=images.schema), images.slice(1)])  # the first photo is gone
    pairs = [("of a new photo", "0-new.jpg"), ("new, of an old photo", known[-1][1]), ("no photo", None), *known]
    whole, _ = load_validation(tower, world.images, world.texts, world.split)
    assert capsys.readouterr().out == ""  # nothing is missing
    part, table = load_validation(tower, world.images, world.texts, split_of(photos, pairs))
    printed = capsys.readouterr().out
    assert "image-val: 1 of the data's images are not in the store" in printed
    assert "text-val: 3 of the data's texts are not in the store" in printed
    own_captions = sum(id == known[0][1] for _, id in known)
    assert len(part.caption_row) == len(whole.caption_row) - own_captions
    if tower == "image":
        assert table.column("id").to_pylist() == images.column("id").to_pylist()[1:]
        assert torch.equal(part.own, whole.own[1:])
    else:
        assert set(table.column("id").to_pylist()) == {text for text, id in known if id != known[0][1]}
        assert torch.equal(part.other, whole.other[1:])
    assert cosine_only(part) == pytest.approx(1, abs=1e-6)


def test_a_caption_of_two_photos_is_embedded_once_and_counts_twice(world: World) -> None:
    images, captions = world.split.require_images(), world.split.require_captions()
    first, second = images["id"].to_pylist()[:2]
    text = captions["text"].to_pylist()[0]
    validation, table = load_validation(
        "text", world.images, world.texts, split_of(images, [(text, first), (text, second)])
    )
    assert table.column("id").to_pylist() == [text]
    assert (validation.caption_row.tolist(), validation.image_row.tolist()) == ([0, 0], [0, 1])


def test_captions_in_another_language_all_count_without_a_cosine(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    images, captions = world.split.require_images(), world.split.require_captions()
    owners = captions["image_id"].to_pylist()
    chinese = [(f"第{row % 20}张", owner) for row, owner in enumerate(owners)]  # four are of two photos
    split = split_of(images, [("没有照片", None), *chinese])
    validation, table = load_validation("text", world.images, world.texts, split, foreign=True)
    assert "validation: 20 captions, not all of which the store has" in capsys.readouterr().out
    texts = table.column("id").to_pylist()
    assert texts == list(dict.fromkeys(text for text, _ in chinese))
    assert [texts[row] for row in validation.caption_row.tolist()] == [text for text, _ in chinese]
    ids = images["id"].to_pylist()
    assert [ids[row] for row in validation.image_row.tolist()] == owners
    assert len(validation.own) == 20
    student = torch.randn(20, validation.other.shape[1])
    expected = retrieval_metrics(validation.other, student[validation.caption_row], validation.image_row)
    assert validation.metrics(student) == pytest.approx(expected)
    with pytest.raises(StoreError, match="found none of 1 that belongs to one of the 8 photos"):
        load_validation("text", world.images, world.texts, split_of(images, [("没有照片", None)]), foreign=True)


def test_captions_that_the_store_has_are_compared_with_the_teacher_in_any_language(world: World) -> None:
    validation, _ = load_validation("text", world.images, world.texts, world.split, foreign=True)
    assert cosine_only(validation) == pytest.approx(1, abs=1e-6)


def test_no_caption_with_its_photo_is_an_error(world: World) -> None:
    split = split_of(world.split.require_images(), [("never seen", None)])
    with pytest.raises(StoreError, match="expected captions of the validation photos, found none of the 1"):
        load_validation("image", world.images, world.texts, split)


def test_tables_of_two_teachers_are_refused_with_what_differs(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.texts.folder, tmp_path / "text-val")
    manifest = json.loads((tmp_path / "text-val/manifest.json").read_text(encoding="utf-8"))
    manifest["teacher"] |= {"weights_sha256": "f" * 64, "name": "another"}
    (tmp_path / "text-val/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    other = open_table(tmp_path, "text", "val")
    with pytest.raises(StoreError, match=r"something else:\n  teacher.weights_sha256: expected .* found 'fff"):
        load_validation("image", world.images, other, world.split)


def test_fit_refuses_another_validation_photo_under_the_same_id(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    photo, another = sorted((data / "COCO/val2017").iterdir())[2:4]
    shutil.copy(another, photo)
    options = ["--student.options", "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}"]
    options += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--loader.workers", "0"]
    paths = ["--data", str(data), "--store", str(tiny_views_store), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=f"{photo.name}: expected the photo .* found another one under its id"):
        cli.main(["fit", "--preset", "none", "--tower", "image", *paths, *options])
