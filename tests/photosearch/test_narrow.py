"""An index of fewer numbers: what it learns, once, and what it keeps of the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clip_distill as cd
from clip_distill.model.model import Model
from clip_distill.photosearch.index import Index
from clip_distill.photosearch.narrow import learned, narrowed
from clip_distill.photosearch.update import Progress, update


def index_of(folder: Path, dim: int) -> Index:
    return Index(folder, {"student": "tiny", "dim": dim})


def test_the_first_directions_keep_the_order(photos: Path, teacher_model: Model, tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", 12)
    model = narrowed(teacher_model, index, [str(photos)])
    assert model.embed_dim == 12 and index.count() == 24, "the photos that it learned from are in the index"
    state = update(index, [str(photos)], model.encoder("image"), Progress())
    assert state.total == 0
    contents = index.contents()
    assert contents.matrix.shape == (24, 12)
    np.testing.assert_allclose(contents.matrix, model.encode_image(contents.paths), atol=2e-3)
    whole = teacher_model.encode_image(contents.paths)
    nearest = whole @ whole.T
    same = np.argsort(-nearest, axis=1)[:, :3] == np.argsort(-(contents.matrix @ contents.matrix.T), axis=1)[:, :3]
    assert same.mean() > 0.9
    words = model.encode_text(["a red circle", "a blue bar"])
    assert words.shape == (2, 12)
    map = index.map()
    assert map is not None
    expected = teacher_model.encode_text(["a red circle", "a blue bar"]) @ map
    np.testing.assert_allclose(words, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_map_is_learned_once(photos: Path, teacher_model: Model, tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", 8)
    first = narrowed(teacher_model, index, [str(photos)]).encode_text("a dog")
    (photos / "broken.png").write_bytes(b"no photo")
    for path in sorted((photos / "old").iterdir()):
        path.unlink()
    again = narrowed(teacher_model, index_of(tmp_path / "index", 8), [str(photos)])
    np.testing.assert_array_equal(again.encode_text("a dog"), first)


def test_the_first_map_stays(photos: Path, teacher_model: Model, tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", 8)
    first = index.keep_map(np.eye(32, 8, dtype=np.float32))
    # as in a process that began before the first one ended
    map = learned(index, [str(photos)], teacher_model.encoder("image"))
    np.testing.assert_array_equal(map, first)
    contents = index.contents()
    expected = teacher_model.encode_image(contents.paths)[:, :8]
    np.testing.assert_allclose(contents.matrix, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-3)


def test_too_few_photos_are_refused(photos: Path, teacher_model: Model, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no photo")
    index = index_of(tmp_path / "index", 16)
    with pytest.raises(cd.InvalidValue, match="expected 32 photos or more to learn from .*, found 24 that can be read"):
        learned(index, [str(photos)], teacher_model.encoder("image"))
    assert index.map() is None and index.count() == 0


def test_search_takes_it(photos: Path, tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"teacher": tiny_teacher, "index": tmp_path / "index", "device": "cpu", "query": "a red circle"}
    monkeypatch.setattr("clip_distill.photosearch.models.score_of", lambda place: 0.1)
    found = cd.search([photos], **asked, dim=8, quantize="int8", top=24)  # type: ignore[arg-type]
    assert len({each["path"] for each in found} | {same for each in found for same in each["same"]}) == 24
    assert cd.search([photos], **asked, dim=8, quantize="int8", top=24) == found  # type: ignore[arg-type]
    assert {each["good"] for each in found} == {None}, "the score was found with all numbers"
    with pytest.raises(cd.InvalidValue, match="expected an index made by"):
        cd.search([photos], **asked)  # type: ignore[arg-type]
    with pytest.raises(cd.InvalidValue, match="--dim: expected 1 up to the student's 32, found 33"):
        cd.search([photos], **asked, dim=33)  # type: ignore[arg-type]
