"""Several teachers as one: the combined numbers by hand, and a student trained on them through the real commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_distill.cli import main as cli
from clip_distill.store.ensemble import open_table, write_ensemble
from clip_distill.store.manifest import StoreError
from clip_distill.towers.spec import load_tower


@pytest.fixture(scope="module")
def stores(
    make_teacher: Callable[..., str], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two teachers' stores of the same data and views, below one folder."""
    root = tmp_path_factory.mktemp("ensemble")
    for seed, name in enumerate("ab"):
        teacher = make_teacher(root / f"teacher-{name}", custom_text=True, seed=seed)
        options = ["--views", "2", "--augment", "crop_flip", "--workers", "0", "--device", "cpu"]
        cli.main(["embed", "--data", str(tiny_data), "--teacher", teacher, "--store", str(root / name), *options])
    return root / "a", root / "b"


def unit(rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_concatenated_teachers_give_the_mean_of_their_cosines(stores: tuple[Path, Path], tmp_path: Path) -> None:
    write_ensemble(tmp_path / "both", [str(store) for store in stores], "concat")
    table = open_table(tmp_path / "both", "image", "train")
    one, other = (open_table(store, "image", "train") for store in stores)
    rows, views = np.array([3, 0, 3]), np.array([1, 0, 0])
    found = table.embeddings(rows, views)
    assert found.shape == (3, 64)
    assert (table.manifest.dim, len(table)) == (64, 24)
    np.testing.assert_array_equal(found, np.hstack([unit(t.embeddings(rows, views)) for t in (one, other)]))
    np.testing.assert_allclose(
        unit(found) @ unit(found).T,
        sum(unit(t.embeddings(rows, views)) @ unit(t.embeddings(rows, views)).T for t in (one, other)) / 2,
        atol=1e-6,
    )


def test_stores_of_different_photos_are_refused(stores: tuple[Path, Path], tiny_data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    photos = sorted((other / "image").iterdir())
    shutil.copy(photos[1], photos[0])
    teacher = open_table(stores[1], "image", "train").manifest.teacher["name"]
    options = ["--tower", "image", "--split", "train", "--views", "2", "--augment", "crop_flip", "--workers", "0"]
    cli.main(["embed", "--data", str(other), "--teacher", teacher, "--store", str(tmp_path / "b"), *options])
    write_ensemble(tmp_path / "both", [str(stores[0]), str(tmp_path / "b")], "concat")
    with pytest.raises(StoreError, match=f"found 1 others under the same ids, for instance 'image/{photos[0].name}'"):
        open_table(tmp_path / "both", "image", "train")
    known = open_table(stores[0], "image", "train")
    write_ensemble(tmp_path / "same", [str(store) for store in stores], "concat")
    assert open_table(tmp_path / "same", "image", "train").photos(np.arange(24)) == known.photos(np.arange(24))


def test_info_and_verify_cover_the_stores_of_an_ensemble(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [Path(shutil.copytree(store, tmp_path / store.name)) for store in stores]
    write_ensemble(tmp_path / "both", [str(store) for store in parts], "concat")
    for verb in ("info", "verify"):
        cli.main(["store", verb, "--store", str(tmp_path / "both")])
    out = capsys.readouterr().out
    assert "an ensemble of 2 stores" in out and "8 tables" in out
    assert all(open_table(store, "image", "val").manifest.teacher["weights_sha256"] in out for store in parts)
    view = parts[1] / "text-val/shard-00000/view-000.npy"
    view.write_bytes(view.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match="1 problems(.|\n)*view-000.npy has changed"):
        cli.main(["store", "verify", "--store", str(tmp_path / "both")])


def test_rows_that_one_store_lacks_are_left_out(stores: tuple[Path, Path], tiny_data: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "data"
    shutil.copytree(tiny_data, fewer)
    for photo in sorted((fewer / "image").iterdir())[:4]:
        photo.unlink()
    teacher = open_table(stores[1], "image", "train").manifest.teacher["name"]
    options = ["--tower", "image", "--split", "train", "--views", "2", "--augment", "crop_flip", "--workers", "0"]
    cli.main(["embed", "--data", str(fewer), "--teacher", teacher, "--store", str(tmp_path / "b"), *options])
    write_ensemble(tmp_path / "both", [str(stores[0]), str(tmp_path / "b")], "mean")
    table = open_table(tmp_path / "both", "image", "train")
    assert len(table) == 20
    everything = open_table(stores[0], "image", "train").ids.to_pylist()
    assert table.ids.to_pylist() == everything[4:]
    assert table.find([everything[0], everything[4], "nonsense"]).tolist() == [-1, 0, -1]
    ours = unit(open_table(stores[0], "image", "train").embeddings(np.array([4])))
    theirs = unit(open_table(tmp_path / "b", "image", "train").embeddings(np.array([0])))
    np.testing.assert_allclose(table.all_embeddings()[:1], (ours + theirs) / 2, atol=1e-6)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_student_of_an_ensemble_trains_is_measured_and_has_its_width(
    tower: str, stores: tuple[Path, Path], tiny_data: Path, tmp_path: Path
) -> None:
    cli.main(["store", "combine", "--stores", str(list(map(str, stores))), "--out", str(tmp_path / "both")])
    student = {
        "image": "{input_resolution: 32, patch_size: 16, width: 16, layers: 1, heads: 2}",
        "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
    }[tower]
    where = ["--data", str(tiny_data), "--store", str(tmp_path / "both")]
    options = ["--student.options", student, "--loader.workers", "0", "--trainer.max_epochs", "1"]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    cli.main(["fit", "--preset", "none", "--tower", tower, *where, "--out", str(tmp_path / "run"), *options])
    assert load_tower(tmp_path / "run")[0].embed_dim == 64
    measured = ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "result.json")]
    cli.main(["evaluate", *where, f"--{tower}_student", str(tmp_path / "run"), *measured])
    assert len(json.loads((tmp_path / "result.json").read_text())["pairings"]) == 2


def test_stores_of_other_views_do_not_combine(stores: tuple[Path, Path], tiny_data: Path, tmp_path: Path) -> None:
    teacher = open_table(stores[1], "image", "train").manifest.teacher["name"]
    options = ["--tower", "image", "--split", "train", "--views", "2", "--augment", "crop_flip", "--seed", "7"]
    cli.main(["embed", "--data", str(tiny_data), "--teacher", teacher, "--store", str(tmp_path / "b"), *options])
    write_ensemble(tmp_path / "both", [str(stores[0]), str(tmp_path / "b")], "concat")
    with pytest.raises(StoreError, match="seed: expected 0, found 7"):
        open_table(tmp_path / "both", "image", "train")


def test_one_store_is_no_ensemble(stores: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two stores or more"):
        write_ensemble(tmp_path / "both", [str(stores[0])], "concat")
