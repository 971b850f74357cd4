"""Files of every runtime, written by the verb, run by the runtime itself, and loaded back."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clip_distill as cd
from clip_distill.exports.save import FellShort, Fidelity, require_near
from clip_distill.runtimes import RUNTIMES
from clip_distill.system.errors import MissingPackage

CAPTIONS = ["a red circle", "two dogs & a cat's 3 toys", "一只猫 🐈 ça va"]
CHECKED = {
    "onnx": "int4",
    "ort": "int8",
    "openvino": "fp16 int8",
    "executorch": "fp32 fp16",
    "litert": "fp32 int8",
}
PACKAGES = {
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "litert_torch",
    "coreml": "coremltools",
}


def installed(target: str) -> None:
    if importlib.util.find_spec(PACKAGES[target]) is None:
        pytest.skip(f"{PACKAGES[target]} is not installed: pip install {RUNTIMES[target].needs}")


@pytest.mark.parametrize(
    ("target", "weights"),
    [(target, weights) for target, kinds in CHECKED.items() for weights in kinds.split()],
)
def test_a_runtime_gives_the_students_embeddings(
    target: str, weights: Any, tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    installed(target)
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    loose: dict[str, Any] = {"min_cosine": 0.5, "max_points_lost": 100.0} if weights.startswith("int") else {}
    own = {"calibrate": tiny_data, "photos": 6} if weights == "int8" else {}
    out = cd.export(**students, to=target, weights=weights, out=tmp_path / "out", **own, **loose)
    assert out is not None
    suffix = RUNTIMES[target].suffix
    assert (out / f"image{suffix}").is_file() and (out / f"text{suffix}").is_file()
    found, expected = cd.load(out), cd.load(image=tiny_runs["image"], text=tiny_runs["text"])
    photos = sorted((tiny_data / "image").iterdir())[:3]
    least = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.9, "int4": 0.8}[weights]
    for a, b in (
        (found.encode_text(CAPTIONS), expected.encode_text(CAPTIONS)),
        (found.encode_image(photos), expected.encode_image(photos)),
    ):
        assert float(F.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b)).min()) > least
    record = json.loads((out / "export.json").read_text())
    cosines = record["towers"]["text"]
    assert 1.0001 > cosines["mean_cosine_to_torch"] >= cosines["least_cosine_to_torch"] > least


@pytest.mark.parametrize("target", ["coreml", "queryable"])
def test_core_ml_is_written_and_says_that_it_was_not_run(
    target: str, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    installed("coreml")
    import coremltools

    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    out = cd.export(**students, to=target, weights="fp16", out=tmp_path / "out")
    assert out is not None
    described = json.loads((out / "towers.json").read_text())
    assert described["image"]["mean_cosine_to_torch"] is None
    model = coremltools.models.MLModel(str(out / described["image"]["file"]), skip_model_load=True).get_spec()
    (source,), (target_of,) = model.description.input, model.description.output
    assert source.name == described["image"]["input"]["name"] and target_of.name == described["image"]["output"]["name"]
    if target == "queryable":
        assert source.type.imageType.width == 256
        assert (out / "vocab.json").is_file() and (out / "merges.txt").read_text().count("\n") == 48895
    with pytest.raises(ValueError, match="run on Apple's systems alone"):
        cd.load(out)


def test_picquery_gets_clips_pixels_int32_ids_and_512_numbers(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    cd.export(**students, to="picquery", out=tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out/clip-text-int8.ort", providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    assert source.type == "tensor(int32)" and source.shape[1] == 77
    ids = np.zeros((1, 77), np.int32)
    ids[0, :3] = 49406, 320, 49407
    (found,) = session.run(None, {source.name: ids})
    expected = cd.load(tiny_runs["text"]).encode_text(["a"], normalize=True)
    np.testing.assert_allclose(found[:, :32], expected, atol=1e-4)
    assert found.shape == (1, 512) and not found[:, 32:].any()
    assert cd.load(tmp_path / "out").encode_image([np.zeros((40, 50, 3), np.uint8)]).shape == (1, 512)


def test_what_falls_short_is_left_out_and_what_was_good_is_kept(
    tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}

    def only_text(name: str, weights: str, found: Fidelity, min_cosine: float | None) -> None:
        assert found.mean is not None
        require_near(name, "fp32", found, 2.0 if name.startswith("image") else -1.0)

    monkeypatch.setattr("clip_distill.exports.save.require_near", only_text)
    with pytest.raises(ValueError, match=r"out: image.onnx \(fp32\): expected a least cosine ≥ 2.0"):
        cd.export(**students, to="onnx", out=tmp_path / "out")
    model = cd.load(tmp_path / "out")
    assert model.towers == ("text",) and not (tmp_path / "out/image.onnx").exists()
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert list(record["towers"]) == ["text"] and "least cosine ≥ 2.0" in record["fell_short"][0]
    with pytest.raises(ValueError, match=r"the image file: expected at most -200 points of text→image R@10 lost"):
        monkeypatch.undo()
        cd.export(**students, to="onnx", out=tmp_path / "all", calibrate=tiny_data, photos=4, max_points_lost=-200)
    assert not (tmp_path / "all").exists(), "nothing was good"


def test_bounds_are_of_the_least_or_the_mean_and_settable() -> None:
    require_near("x", "fp32", Fidelity(1.0, 0.99995), None)
    require_near("x", "int8", Fidelity(0.995, 0.5), None)
    require_near("x", "fp32", Fidelity(None, None), None)  # cannot be run here
    require_near("x", "int8", Fidelity(0.9, 0.5), 0.85)
    with pytest.raises(FellShort, match="least cosine ≥ 0.9999 .* found 0.9000"):
        require_near("x", "fp32", Fidelity(1.0, 0.9), None)
    with pytest.raises(FellShort, match="mean cosine ≥ 0.99 .* --calibrate DATA"):
        require_near("x", "int8", Fidelity(0.98, 0.5), None)


def test_weights_that_a_runtime_lacks_and_packages_that_are_missing(
    tiny_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    with pytest.raises(ValueError, match="executorch: expected --weights fp32, fp16, found int8"):
        cd.export(**students, to="executorch", weights="int8", out=tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(__import__("sys").modules, "clip_distill.exports.writers.openvino", raising=False)
    with pytest.raises(MissingPackage, match=r"pip install 'clip-distill\[openvino\]'"):
        cd.export(**students, to="openvino", out=tmp_path / "out")


def test_photos_that_cannot_be_read_are_left_out_of_recall(
    tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    photos = sorted((data / "COCO/val2017").iterdir())
    photos[0].write_bytes(b"no photo")
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    cd.export(**students, to="onnx", out=tmp_path / "out", calibrate=data, photos=4)
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["recall"]["photos"] == len(photos) - 1
    assert record["recall"]["image"]["t2i_r10"] == pytest.approx(record["recall"]["student"]["t2i_r10"])
