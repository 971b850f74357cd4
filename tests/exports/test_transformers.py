"""Folders that transformers and sentence-transformers load, in a process that knows nothing of how they were made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip_distill as cd
from clip_distill.exports.clip_model import clip_config, is_clip
from clip_distill.exports.target import Given
from clip_distill.exports.transformers import write
from clip_distill.students.cut import timm_cut
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import load_tower

CAPTIONS = ["a red circle", "two dogs & a cat's 3 toys", "A photo of a very large, very old elephant."]
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], env=OFFLINE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


AUTO = """
import json, torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, AutoImageProcessor
model = AutoModel.from_pretrained({folder!r}, trust_remote_code={trust}).eval()
tokenizer = AutoTokenizer.from_pretrained({folder!r}, trust_remote_code={trust})
tokens = tokenizer({captions!r}, padding="max_length", truncation=True, return_tensors="pt")
processor = AutoImageProcessor.from_pretrained({folder!r}, trust_remote_code={trust}, use_fast=False)
photo = processor(Image.open({photo!r}), return_tensors="pt")
with torch.no_grad():
    texts = model.get_text_features(**tokens).pooler_output
    images = model.get_image_features(**photo).pooler_output
    scores = model(**tokens, **photo).logits_per_text
print(json.dumps([type(model).__name__, texts.tolist(), images.tolist(), scores.tolist()]))
"""


def require_same(found: list[Any], student: cd.Model, photo: Path) -> None:
    _, texts, images, scores = found
    text = student.encode_text(CAPTIONS, normalize=False)
    image = student.encode_image([photo], normalize=False)
    np.testing.assert_allclose(texts, text, atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(images, image, atol=2e-3, rtol=2e-2)  # the processor rounds otherwise
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (text, image)]
    scale = np.array(scores) / (unit[0] @ unit[1].T)
    np.testing.assert_allclose(scale, scale[0, 0], rtol=5e-2)


def test_open_clips_towers_are_transformers_own_model(
    tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    cd.export(image_student=tiny_runs["image"], text_student=tiny_runs["text"], to="transformers", out=tmp_path / "out")
    photo = sorted((tiny_data / "image").iterdir())[0]
    found = run(AUTO.format(folder=str(tmp_path / "out"), trust=False, captions=CAPTIONS, photo=str(photo)))
    assert found[0] == "CLIPModel"
    require_same(found, cd.load(image=tiny_runs["image"], text=tiny_runs["text"]), photo)
    assert not (tmp_path / "out/modeling_clip_distill.py").exists()
    back = cd.load(tmp_path / "out")
    np.testing.assert_allclose(back.encode_text(CAPTIONS, normalize=False), np.array(found[1]), atol=2e-4, rtol=1e-3)


@pytest.fixture
def cut_student(tiny_runs: dict[str, Path], make_teacher: Callable[..., str], tmp_path: Path) -> Given:
    record = load_teacher(make_teacher(tmp_path / "teacher", custom_text=True), "image")[0].teacher
    torch.manual_seed(0)
    spec, module = timm_cut(record, "test_efficientnet", depths=[1, 1], hidden=16, input_resolution=32)
    return Given((spec, module.eval()), load_tower(tiny_runs["text"]), record | {"logit_scale": 10.0})


def test_other_towers_bring_their_code(cut_student: Given, tiny_data: Path, tmp_path: Path) -> None:
    assert not is_clip(cut_student)
    out = tmp_path / "out"
    out.mkdir()
    write(out, cut_student)
    photo = sorted((tiny_data / "image").iterdir())[0]
    found = run(AUTO.format(folder=str(out), trust=True, captions=CAPTIONS, photo=str(photo)))
    assert found[0] == "StudentModel"
    back = cd.load(out)
    require_same(found, back, photo)
    with torch.no_grad():
        pixels = torch.rand(2, 3, 32, 32)
        expected = cut_student.image[1](pixels)
    from transformers import AutoModel

    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(out, local_files_only=True)
    loaded = AutoModel.from_pretrained(out, local_files_only=True, trust_remote_code=True)
    torch.testing.assert_close(loaded.get_image_features(pixel_values=pixels).pooler_output, expected)


ENCODE = """
import json
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({folder!r}, device="cpu")
photos = model.encode([Image.open({photo!r}).convert("RGB")] * 2)
print(json.dumps([model.encode({captions!r}).tolist(), photos.tolist(), model.get_embedding_dimension()]))
"""


def test_sentence_transformers_encodes_texts_and_photos(
    tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    out, photo = tmp_path / "out", sorted((tiny_data / "image").iterdir())[0]
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    cd.export(**students, to="sentence-transformers", out=out)
    texts, photos, _ = run(ENCODE.format(folder=str(out), captions=CAPTIONS, photo=str(photo)))
    student = cd.load(image=tiny_runs["image"], text=tiny_runs["text"])
    np.testing.assert_allclose(texts, student.encode_text(CAPTIONS, normalize=True), atol=2e-4)
    np.testing.assert_allclose(photos, student.encode_image([photo] * 2, normalize=True), atol=5e-3)


def test_what_transformers_cannot_hold_is_refused(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    with pytest.raises(ValueError, match="expected --weights fp32 or fp16, found int8"):
        cd.export(**students, to="transformers", weights="int8", out=tmp_path / "out")
    given = Given(load_tower(tiny_runs["image"]), load_tower(tiny_runs["text"]), {"logit_scale": 10.0})
    given.text[0].tokenizer["source"] = "clip-pruned"
    with pytest.raises(ValueError, match="found 'clip-pruned'. Train the text student in its teacher's own tokens"):
        write(tmp_path, given)


def test_the_configuration_says_the_towers_shapes(tiny_runs: dict[str, Path]) -> None:
    given = Given(load_tower(tiny_runs["image"]), load_tower(tiny_runs["text"]), {"logit_scale": 10.0})
    config = clip_config(given)
    assert config["text_config"]["eos_token_id"] == 49407 and config["projection_dim"] == 32
    assert config["vision_config"]["image_size"] == 32
