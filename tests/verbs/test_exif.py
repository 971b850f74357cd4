"""Photos that lie on their side: `embed --exif true`, and every later step that reads photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip_distill as cd
from clip_distill.store.table import Store

TURN = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}


@pytest.fixture(scope="module")
def lying(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, whose photos lie in every direction and say so."""
    data = shutil.copytree(tiny_data, tmp_path_factory.mktemp("lying") / "data")
    for number, path in enumerate(sorted([*(data / "image").iterdir(), *(data / "COCO/val2017").iterdir()])):
        orientation = list(TURN)[number % 3]
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(path) as image:
            turned = image.transpose(TURN[orientation])
        turned.save(path, "PNG", exif=exif)  # by content, and lossless
    return data


@pytest.fixture(scope="module")
def plain(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photos, upright, as lossless files under the same names."""
    data = shutil.copytree(tiny_data, tmp_path_factory.mktemp("plain") / "data")
    for path in [*(data / "image").iterdir(), *(data / "COCO/val2017").iterdir()]:
        with Image.open(path) as image:
            image.load()
        image.convert("RGB").save(path, "PNG")
    return data


def embedded(data: Path, teacher: str, store: Path, exif: bool, **more: object) -> Path:
    cd.embed(data, teacher=teacher, store=store, exif=exif, workers=0, device="cpu", **more)  # type: ignore[arg-type]
    return store


@pytest.fixture(scope="module")
def store(lying: Path, tiny_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("upright") / "store"
    return embedded(lying, tiny_teacher, place, True, views=2, augment="crop_flip")


def asked(data: Path, store: Path, out: Path) -> dict[str, Any]:
    """What `fit` is asked: a student of one layer, one epoch."""
    small = {"width": 32, "layers": 1, "heads": 2, "patch_size": 16}
    where = {"data": data, "store": store, "out": out, "tower": "image", "preset": "none"}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    return where | {"student": {"options": small}, "loader": {"workers": 0}, "trainer": trainer}


@pytest.fixture(scope="module")
def run(lying: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    cd.fit(**asked(lying, store, out))
    return out


def test_the_store_has_the_upright_photos(
    store: Path, plain: Path, lying: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    upright = embedded(plain, tiny_teacher, tmp_path / "plain", False, views=2, augment="crop_flip")
    left = embedded(lying, tiny_teacher, tmp_path / "left", False, tower="image", split="train")
    expected, found, other = (Store(place / "image-train") for place in (upright, store, left))
    for view in range(2):
        theirs, mine = expected.embeddings(expected.find(found.ids), view), found.embeddings(np.arange(24), view)
        np.testing.assert_allclose(mine, theirs, atol=1e-3)
    assert np.abs(other.embeddings(other.find(found.ids), 0) - found.embeddings(np.arange(24), 0)).max() > 0.05


def test_a_store_is_not_gone_on_with_the_other_way(store: Path, lying: Path, tiny_teacher: str) -> None:
    with pytest.raises(cd.Error, match=r"teacher.preprocess.exif: expected None, found True"):
        embedded(lying, tiny_teacher, store, False, views=2, augment="crop_flip")


def test_a_student_turns_photos_wherever_it_goes(
    run: Path, lying: Path, plain: Path, store: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in (lying / "image").iterdir())[:6]
    expected = cd.load(run).encode_image([np.asarray(Image.open(plain / "image" / name)) for name in names])
    cd.export(tmp_path / "onnx", image_student=run, to="onnx")
    for model in (cd.load(run), cd.load(tmp_path / "onnx")):
        paths = [lying / "image" / name for name in names]
        np.testing.assert_allclose(model.encode_image(paths), expected, atol=1e-4)
        opened = [Image.open(path) for path in paths]
        np.testing.assert_allclose(model.encode_image(opened), expected, atol=1e-4)
    report = cd.evaluate(data=lying, store=store, image_student=run, device="cpu", workers=0).to_dict()
    assert report["teacher"]["name"].startswith("upright:") and report["teacher"]["parameters"]["image"] > 0


def test_the_teacher_online_sees_them_upright(run: Path, lying: Path, store: Path, tmp_path: Path) -> None:
    online = cd.fit(**asked(lying, store, tmp_path / "online"), target="online")
    assert cd.load(online).encoder("image").preprocess["exif"] is True


def test_open_clip_gets_the_keys_that_it_knows(run: Path, store: Path, tmp_path: Path) -> None:
    cd.export(tmp_path / "out", image_student=run, to="open_clip")
    config = json.loads((tmp_path / "out/open_clip_config.json").read_text())
    assert "exif" not in config["preprocess_cfg"]


def test_search_turns_as_the_student_does(run: Path, lying: Path, tmp_path: Path) -> None:
    asked = {"image_student": run, "device": "cpu", "query": "a red circle", "top": 24}
    scores = [
        {each["path"]: each["score"] for each in cd.search([lying / "image"], index=tmp_path / name, **asked, **more)}  # type: ignore[arg-type]
        for name, more in (("own", {}), ("true", {"exif": True}), ("false", {"exif": False}))
    ]
    assert scores[0] == scores[1] != scores[2]
