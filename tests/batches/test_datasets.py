"""Training batches: the stored embedding is the teacher's of exactly what the student sees."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_distill.batches.datasets import Batch, Captions, Images
from clip_distill.batches.loader import DistillData, LoaderOptions
from clip_distill.batches.order import plain
from clip_distill.corpus.layout import scan
from clip_distill.pixels.views import Views, normalise
from clip_distill.recipe import Loader, Recipe, Student
from clip_distill.store.ensemble import open_table
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower
from clip_distill.train.assemble import assemble

SMALL = {
    "image": {"input_resolution": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2},
    "text": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2},
}


def recipe(tower: Tower, data: Path, store: Path, workers: int = 0) -> Recipe:
    loader = Loader(batch_size=5, workers=workers)
    return Recipe(tower, str(data), str(store), "unused", Student(options=dict(SMALL[tower])), loader=loader, seed=4)


def batches_of(data: DistillData) -> list[Batch]:
    return list(data.train_dataloader())


@pytest.fixture(scope="module")
def changed_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_data` with three photos fewer and two more, and other captions: not quite what the store saw."""
    folder = tmp_path_factory.mktemp("changed") / "data"
    shutil.copytree(tiny_data, folder)
    photos = sorted((folder / "image").iterdir())
    for photo in (photos[0], photos[7], photos[-1]):
        photo.unlink()
    for name in ("000000000003b.jpg", "new.jpg"):
        shutil.copy(photos[3], folder / "image" / name)
    lines = (folder / "CC/Train_GCC-training.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    new = ["a caption that the store has not seen\thttps://example.invalid/new.jpg\n"]
    (folder / "CC/Train_GCC-training.tsv").write_text("".join(new + lines[5:]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("changed", [False, True])
def test_targets_are_the_teachers_embeddings_of_the_inputs(
    tower: Tower, changed: bool, tiny_teacher: str, tiny_data: Path, changed_data: Path, tiny_views_store: Path
) -> None:
    _, data = assemble(recipe(tower, changed_data if changed else tiny_data, tiny_views_store))
    spec, teacher = load_teacher(tiny_teacher, tower)
    batches = batches_of(data)
    assert len(data.train) == ({"image": 21, "text": 67} if changed else {"image": 24, "text": 72})[tower]
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(len(data.train)))
    for inputs, target, teacher_inputs, _ in batches:
        assert target is not None
        assert target.dtype == torch.float32
        assert teacher_inputs is None
        with torch.no_grad():
            expected = teacher(normalise(inputs, spec.preprocess) if tower == "image" else inputs)
        torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-3)


def test_new_photos_and_captions_are_said_to_be_missing(
    changed_data: Path, tiny_views_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assemble(recipe("image", changed_data, tiny_views_store))
    assert "2 of the data's images are not in the store; `clip-distill embed` adds them" in capsys.readouterr().out


@pytest.mark.parametrize("tower", ["image", "text"])
def test_workers_change_nothing(tower: Tower, tiny_data: Path, tiny_views_store: Path) -> None:
    alone, helped = (batches_of(assemble(recipe(tower, tiny_data, tiny_views_store, n))[1]) for n in (0, 2))
    assert len(alone) == len(helped) == -(-{"image": 24, "text": 72}[tower] // 5)
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, Tensor))


def test_captions_are_cut_to_the_longest_of_the_batch_or_padded_to_a_width() -> None:
    tokens = tokenize(TokenizerSpec("clip", 77, 49408), ["a dog", "a dog on the grass", "dog"])
    cut, padded = Captions(tokens, 0), Captions(tokens, 0, width=20)
    assert cut[plain(np.array([0, 1]))].inputs.shape == (2, 7)
    assert cut[plain(np.array([2, 0]))].inputs.tolist() == [[49406, 1929, 49407, 0], [49406, 320, 1929, 49407]]
    assert padded[plain(np.array([0]))].inputs.shape == (1, 20)


def test_the_teacher_online_sees_the_same_view_at_its_own_size(tiny_data: Path) -> None:
    photos = scan(str(tiny_data)).train.images
    cfg = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    small, large = Views(cfg, "crop_flip", 2), Views(cfg | {"size": 64}, "crop_flip", 2)
    batch = Images(photos, small, teacher_views=large, online=True)[np.array([(4, 7), (0, 7)])]
    assert batch.target is None
    assert batch.teacher_inputs is not None
    shrunk = torch.nn.functional.interpolate(batch.teacher_inputs.float(), size=32, mode="area")
    assert float((shrunk - batch.inputs.float()).abs().mean()) < 4  # of 255
    same = Images(photos, small, online=True)[np.array([(4, 7), (0, 7)])]
    assert torch.equal(same.inputs, batch.inputs)
    assert same.teacher_inputs is same.inputs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_went_away_is_named_with_what_to_do(
    workers: int, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    _, data = assemble(recipe("image", tmp_path / "data", tiny_views_store, workers))
    gone = tmp_path / "data/image/000000000005.jpg"
    gone.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(gone))}: expected the photo .*missing file.*--resume true"):
        batches_of(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_photo_under_the_same_id_is_named_with_what_to_do(
    workers: int, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    photo = tmp_path / "data/image/000000000005.jpg"
    _, data = assemble(recipe("image", tmp_path / "data", tiny_views_store, workers))
    shutil.copy(tmp_path / "data/image/000000000006.jpg", photo)
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(photo))}: expected the photo .*digest.*found another.*--store"
    ):
        batches_of(data)


def test_a_loader_knows_its_place_and_takes_it_up_again(tiny_data: Path, tiny_views_store: Path) -> None:
    made = recipe("text", tiny_data, tiny_views_store)
    _, data = assemble(made)
    loader = data.train_dataloader()
    batches = iter(loader)
    seen = [next(batches).rows.tolist() for _ in range(4)]
    state = data.state_dict()
    _, again = assemble(made)
    again.load_state_dict(state)
    rest = [batch.rows.tolist() for batch in again.train_dataloader()]
    assert seen + rest == [batch.rows.tolist() for batch in loader]
    assert len(batches_of(again)) == len(loader)  # one made later begins at the beginning


@pytest.mark.parametrize("options", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_batch_sizes_and_workers_must_make_sense(options: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected batch sizes of 1 or more"):
        LoaderOptions(*options)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_data_that_the_store_does_not_know_is_an_error(
    tower: Tower, tiny_data: Path, tiny_views_store: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data/image").rename(tmp_path / "old")
    (tmp_path / "data/image").mkdir()
    for photo in (tmp_path / "old").iterdir():
        shutil.copy(photo, tmp_path / "data/image" / f"other-{photo.name}")
    for file in ("COCO/annotations/captions_train2017.json", "CC/Train_GCC-training.tsv"):
        text = (tmp_path / "data" / file).read_text(encoding="utf-8")
        (tmp_path / "data" / file).write_text(text.replace(" on ", " over ").replace(".jpg", ".jpeg"), encoding="utf-8")
    assert len(open_table(tiny_views_store, tower, "train")) in (24, 72)
    with pytest.raises(ValueError, match=f"expected the data's {tower}s, found none of .* Is --data the folder"):
        assemble(recipe(tower, tmp_path / "data", tiny_views_store))
