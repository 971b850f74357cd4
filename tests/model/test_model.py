"""Loaded models: the embeddings of training's own pixels and tokens, whatever they were loaded from."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import clip_distill as cd
from clip_distill.corpus.layout import scan
from clip_distill.evaluation.retrieval import encode_images, encode_texts
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import load_tower

CPU = torch.device("cpu")
TEXTS = ["a red circle on blue", "a photo of a dog", "一只狗", "", "a red circle on blue", "word " * 90]


@pytest.fixture(scope="module")
def folders(exported: Path, tiny_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format → folder of both students."""
    out = tmp_path_factory.mktemp("exports") / "open_clip"
    cd.export(image_student=tiny_runs["image"], text_student=tiny_runs["text"], out=out, to="open_clip")
    return {"onnx": exported, "open_clip": out}


@pytest.fixture(scope="module")
def photos(tiny_data: Path) -> list[str]:
    return scan(str(tiny_data)).train.images.column("path").to_pylist()


def unit(embeddings: torch.Tensor) -> np.ndarray[Any, Any]:
    return torch.nn.functional.normalize(embeddings.double(), dim=-1).float().numpy()


def truth(run: Path, tiny_data: Path) -> np.ndarray[Any, Any]:
    spec, module = load_tower(run)
    if spec.tower == "text":
        return unit(encode_texts(spec, module, TEXTS, CPU))
    table: pa.Table = scan(str(tiny_data)).train.images
    return unit(encode_images(spec, module, table, CPU, workers=0)[0])


@pytest.mark.parametrize("source", ["run", "student", "onnx", "open_clip"])
def test_a_model_gives_the_embeddings_of_the_student(
    source: str, tiny_runs: dict[str, Path], folders: dict[str, Path], photos: list[str], tiny_data: Path
) -> None:
    if source in folders:
        model = cd.load(folders[source], device="cpu")
    else:
        places = {tower: run / "student" if source == "student" else run for tower, run in tiny_runs.items()}
        model = cd.load(**places, device="cpu")
    assert set(model.towers) == {"image", "text"} and model.embed_dim == 32
    texts, images = model.encode_text(TEXTS, batch_size=2), model.encode_image(photos, batch_size=5)
    assert texts.dtype == images.dtype == np.float32
    np.testing.assert_allclose(texts, truth(tiny_runs["text"], tiny_data), atol=2e-5)
    np.testing.assert_allclose(images, truth(tiny_runs["image"], tiny_data), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)


def test_a_run_of_one_tower_says_what_it_lacks(tiny_runs: dict[str, Path], tiny_teacher: str) -> None:
    model = cd.load(tiny_runs["text"])
    assert model.towers == ("text",) and model.teacher == tiny_teacher
    with pytest.raises(cd.Error, match="expected a model with the image tower, found text alone"):
        model.encode_image([])
    with pytest.raises(cd.Error, match="expected the image tower, found text alone"):
        cd.load(image=tiny_runs["text"])


def test_a_teacher_is_a_model_of_both_towers(tiny_teacher: str, photos: list[str]) -> None:
    model = cd.load(tiny_teacher, device="cpu")
    spec, module = load_teacher(tiny_teacher, "text")
    np.testing.assert_allclose(model.encode_text(TEXTS), unit(encode_texts(spec, module, TEXTS, CPU)), atol=1e-6)
    assert model.encode_image(photos[0]).shape == (32,)
    folder = tiny_teacher.removeprefix("local-dir:")
    np.testing.assert_array_equal(cd.load(folder, device="cpu").encode_text(TEXTS), model.encode_text(TEXTS))


@pytest.mark.parametrize("source", ["open_clip", "onnx"])
def test_one_photo_in_any_form_is_the_same_photo(source: str, folders: dict[str, Path], photos: list[str]) -> None:
    model = cd.load(folders[source], device="cpu")
    image = Image.open(photos[0]).convert("RGB")
    forms = [photos[0], Path(photos[0]), Path(photos[0]).read_bytes(), image, np.array(image)]
    whole = model.encode_image(forms, normalize=False)
    np.testing.assert_allclose(whole, np.broadcast_to(whole[0], whole.shape), atol=1e-5)
    alone = [model.encode_image(form, normalize=False) for form in forms]
    np.testing.assert_allclose(alone, whole, atol=1e-5)


def test_photos_that_cannot_be_read_are_named_or_left_out(
    folders: dict[str, Path], photos: list[str], tmp_path: Path
) -> None:
    model = cd.load(folders["onnx"])
    (tmp_path / "broken.jpg").write_bytes(Path(photos[0]).read_bytes()[:400])
    some = [photos[0], tmp_path / "broken.jpg", tmp_path / "gone.jpg", photos[1]]
    with pytest.raises(cd.BadImage, match=r"broken\.jpg: truncated"):
        model.encode_image(some)
    with pytest.raises(cd.BadImage, match="photo 1: not an image"):
        model.encode_image([photos[0], b"text"])
    embeddings, rows = model.encode_image(some, on_error="skip", batch_size=1)
    assert rows == [0, 3]
    np.testing.assert_allclose(embeddings, model.encode_image([photos[0], photos[1]]), atol=1e-6)
    nothing, rows = model.encode_image([b""], on_error="skip")
    assert nothing.shape == (0, 32) and rows == []


@pytest.mark.parametrize("strange", [3, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), None])
def test_what_is_no_photo_is_told(strange: Any, folders: dict[str, Path]) -> None:
    with pytest.raises(cd.Error, match="encode_image: expected"):
        cd.load(folders["onnx"]).encode_image([strange])


def test_what_is_no_text_is_told(folders: dict[str, Path]) -> None:
    with pytest.raises(cd.Error, match="expected strings, found int"):
        cd.load(folders["onnx"]).encode_text(["a", 3])  # type: ignore[list-item]


def test_shapes_and_kinds(folders: dict[str, Path]) -> None:
    model = cd.load(folders["open_clip"], device="cpu")
    assert model.encode_text([]).shape == (0, 32)
    assert model.encode_text("one").shape == (32,)
    tensor = model.encode_text(["one", "two"], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.shape == (2, 32)
    assert isinstance(model.similarity(tensor, tensor), torch.Tensor)
    long = model.encode_text(["one"], normalize=False)
    np.testing.assert_allclose(long / np.linalg.norm(long), model.encode_text(["one"]), atol=1e-6)
    with pytest.raises(cd.Error, match="expected one width, found 32 and 3"):
        model.similarity(tensor, np.ones((2, 3)))


def test_similarity_is_the_cosine(folders: dict[str, Path]) -> None:
    model = cd.load(folders["onnx"])
    first, second = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([0.0, 2.0])
    np.testing.assert_allclose(model.similarity(first, second), [[0.0], [0.5**0.5]], atol=1e-7)


def test_towers_of_two_teachers_are_refused(tiny_runs: dict[str, Path], make_teacher: Any, tmp_path: Path) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=9)
    with pytest.raises(cd.Error, match="expected towers of one teacher, found two"):
        cd.load(image=other, text=tiny_runs["text"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected a name, or image and text"),
        ({"name": "a", "text": "b"}, "expected a name, or image and text"),
        ({"name": "no/such/run"}, "expected a folder or a teacher's name"),
        ({"name": "."}, "expected a run's folder"),
    ],
)
def test_what_is_no_model_is_told(
    arguments: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cd.Error, match=message):
        cd.load(**arguments)  # type: ignore[arg-type]


def test_a_twin_for_threads_embeds_alike_from_all_of_them(folders: dict[str, Path], photos: list[str]) -> None:
    model = cd.load(folders["onnx"])
    whole, twin = model.encoder("image"), model.encoder("image").for_threads()
    assert twin is not None and twin is not whole
    assert cd.load(folders["open_clip"]).encoder("image").for_threads() is None
    pixels = [np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), np.uint8) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: twin.images(list(batch), None), pixels))
    for batch, embeddings in zip(pixels, found, strict=True):
        np.testing.assert_allclose(embeddings, whole.images(list(batch), None), atol=1e-5)


def test_an_onnx_export_needs_no_torch(folders: dict[str, Path], photos: list[str]) -> None:
    code = (
        "import sys, clip_distill as cd; model = cd.load(sys.argv[1]); "
        "print(model.encode_text('a dog').shape, model.encode_image(sys.argv[2:]).shape); "
        "sys.exit(str(sorted({'torch', 'lightning', 'open_clip', 'transformers'} & set(sys.modules)) or ''))"
    )
    command = [sys.executable, "-c", code, str(folders["onnx"]), *photos[:3]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout.strip() == "(32,) (3, 32)"
