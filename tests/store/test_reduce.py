"""`clip-distill store reduce`: the map, the store it writes, and students and exports of that store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from clip_distill import load
from clip_distill.cli import main as cli
from clip_distill.evaluation.reduce import reduce
from clip_distill.store.ensemble import open_table
from clip_distill.store.reduce import int8, one_bit
from clip_distill.teachers import load_teacher
from clip_distill.towers.reduction import map_to, read_reduction
from clip_distill.towers.spec import load_tower

DIM = 8


@pytest.fixture(scope="module")
def reduced(tiny_data: Path, tiny_views_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reduce") / "narrow"
    options = ["--data", str(tiny_data), "--dim", str(DIM), "--out", str(out), "--shard_rows", "10"]
    cli.main(["store", "reduce", "--store", str(tiny_views_store), *options])
    return out


def test_the_map_keeps_the_greatest_directions_and_turns_them() -> None:
    directions = np.eye(4)[:, [2, 0, 1, 3]]
    map = map_to(2, directions)
    np.testing.assert_allclose(map.T @ map, np.eye(2), atol=1e-6)
    assert not map[[1, 3]].any() and np.abs(map[[2, 0]]).min() > 0.01  # within the first two, and of both
    with pytest.raises(ValueError, match="expected 1 up to the teacher's width 4, found 5"):
        map_to(5, directions)


def test_numbers_are_rounded_to_steps_and_to_signs() -> None:
    rows = np.array([[1.27, -0.004, 0.016]], np.float32)
    np.testing.assert_allclose(int8(rows), [[1.27, 0.0, 0.02]], atol=1e-6)
    np.testing.assert_array_equal(one_bit(rows), [[1, -1, 1]])


def test_every_table_is_its_parents_under_the_map(reduced: Path, tiny_views_store: Path) -> None:
    map = safetensors.numpy.load_file(reduced / "reduce.safetensors")["map"]
    assert map.shape == (32, DIM)
    for tower, split in (("image", "train"), ("image", "val"), ("text", "train"), ("text", "val")):
        own, parent = open_table(reduced, tower, split), open_table(tiny_views_store, tower, split)
        rows = np.arange(len(parent))
        assert own.ids.equals(parent.ids) and own.photos(rows) == parent.photos(rows)
        assert own.manifest.views == parent.manifest.views
        assert own.manifest.teacher["reduced_from"] == parent.manifest.teacher["name"]
        for view in range(parent.manifest.views):
            expected = parent.embeddings(rows, view).astype(np.float32) @ map
            np.testing.assert_allclose(own.embeddings(rows, view), expected, atol=2e-3)
    tokens = open_table(reduced, "text", "val").tokens
    assert np.array_equal(tokens.flat, open_table(tiny_views_store, "text", "val").tokens.flat)


def test_full_width_keeps_everything_and_fewer_keep_less(tiny_views_store: Path, tiny_data: Path) -> None:
    report = reduce(tiny_views_store, data=tiny_data)
    assert [(row["dim"], row["numbers"]) for row in report] == [(32, "float32"), (32, "int8"), (32, "1 bit")]
    assert report[0]["image_neighbours"] == report[0]["text_neighbours"] == 100
    assert [row["bytes"] for row in report] == [128, 32, 4]
    assert report[2]["text_neighbours"] < report[1]["text_neighbours"]
    alone = reduce(tiny_views_store)
    assert "mean_recall" in report[0] and "mean_recall" not in alone[0]


def test_the_same_call_goes_on_and_another_is_refused(reduced: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(reduced, tmp_path / "narrow"))
    shutil.rmtree(copy / "text-val")
    # the map was made from the same store, so it is the same; the tables' teacher is named by the new folder
    for name in ("image-train", "image-val", "text-train"):
        shutil.rmtree(copy / name)
    reduce(tiny_views_store, DIM, copy)
    assert open_table(copy, "text", "val").ids.equals(open_table(reduced, "text", "val").ids)
    with pytest.raises(ValueError, match="found another map"):
        reduce(tiny_views_store, DIM, copy, seed=1)
    with pytest.raises(ValueError, match="below the teacher's width, found 32"):
        reduce(tiny_views_store, 32, tmp_path / "other")
    with pytest.raises(ValueError, match="expected --dim and --out, or neither"):
        reduce(tiny_views_store, 4)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_reduced_teacher_is_the_parent_under_the_map(reduced: Path, tiny_teacher: str, tower: str) -> None:
    spec, narrow = load_teacher(f"reduced:{reduced}", tower)  # type: ignore[arg-type]
    _, parent = load_teacher(tiny_teacher, tower)  # type: ignore[arg-type]
    inputs = torch.randn(2, 3, 32, 32) if tower == "image" else torch.tensor([[5, 9, 49407, 0, 0, 0, 0, 0]])
    map = torch.from_numpy(read_reduction(reduced).map)
    torch.testing.assert_close(narrow(inputs), parent(inputs) @ map, atol=1e-5, rtol=1e-4)
    assert spec.teacher["weights_sha256"] == open_table(reduced, "image", "val").manifest.teacher["weights_sha256"]


def test_students_of_the_reduced_store_start_from_it_and_travel_with_the_map(
    reduced: Path, tiny_data: Path, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    student = ["--student.init", "teacher", "--student.options", "{transformer_width: 16, transformer_layers: 2}"]
    options = ["--trainer.max_epochs", "1", "--loader.batch_size", "8", "--loader.workers", "0", "--preset", "none"]
    data = ["--data", str(tiny_data), "--store", str(reduced)]
    cli.main(["fit", "--tower", "text", *data, "--out", run, *student, *options])
    spec, _ = load_tower(run)
    assert spec.embed_dim == DIM
    cli.main(["export", "--text_student", run, "--out", str(tmp_path / "out")])
    model = load(tmp_path / "out")
    assert model.encode_text(["a dog"]).shape == (1, DIM)
    carried = safetensors.numpy.load_file(tmp_path / "out/reduce.safetensors")["map"]
    np.testing.assert_array_equal(carried, read_reduction(reduced).map)


def test_a_reduced_store_grows_with_its_data(reduced: Path, tiny_data: Path, tmp_path: Path) -> None:
    copy, data = Path(shutil.copytree(reduced, tmp_path / "narrow")), Path(shutil.copytree(tiny_data, tmp_path / "d"))
    photos = sorted((data / "image").iterdir())
    shutil.copy(photos[0], data / "image/new.png")
    before = len(open_table(copy, "image", "train"))
    options = ["--tower", "image", "--split", "train", "--workers", "0", "--device", "cpu", "--dtype", "float32"]
    cli.main(["embed", "--data", str(data), "--teacher", f"reduced:{copy}", "--store", str(copy), *options])
    assert len(open_table(copy, "image", "train")) == before + 1
