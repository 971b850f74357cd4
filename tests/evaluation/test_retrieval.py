"""Encoding photos and captions with real towers, and pairing them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clip_distill.corpus.layout import scan
from clip_distill.evaluation.recall import retrieval_metrics
from clip_distill.evaluation.retrieval import Benchmark, encode_images, encode_texts, measure_pairings
from clip_distill.teachers import load_teacher

CPU = torch.device("cpu")
CAPTIONS = ["a dog", "two dogs run over a field of long grass", "a dog", "", "猫", "word " * 100]


def images_table(ids: list[str], paths: list[Path]) -> pa.Table:
    whole = pa.array([-1] * len(ids), pa.int64())
    strings = pa.large_string()
    columns = {"id": pa.array(ids, strings), "path": pa.array(map(str, paths), strings), "offset": whole, "size": whole}
    return pa.table(columns)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_encoded_as_open_clip_does(tiny_teacher: str, tiny_data: Path, workers: int) -> None:
    images = scan(str(tiny_data)).val.images
    spec, module = load_teacher(tiny_teacher, "image")
    embeddings, ids = encode_images(spec, module, images, CPU, batch_size=3, workers=workers)
    assert ids == images.column("id").to_pylist() and len(ids) == 8
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_teacher)
    pixels = torch.stack([preprocess(Image.open(path)) for path in images.column("path").to_pylist()])
    with torch.no_grad():
        expected = model.eval().encode_image(pixels)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)
    assert embeddings.requires_grad is False and not embeddings.is_inference()


def test_photos_that_cannot_be_read_are_skipped_and_counted(tiny_teacher: str, tmp_path: Path) -> None:
    for name in ("a", "c"):
        Image.effect_noise((40, 30), 50).save(tmp_path / f"{name}.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    (tmp_path / "d.jpg").write_text("no photo")
    images = images_table(list("abcd"), [tmp_path / f"{name}.jpg" for name in "abcd"])
    spec, module = load_teacher(tiny_teacher, "image")
    skipped: Counter[str] = Counter()
    embeddings, ids = encode_images(spec, module, images, CPU, workers=0, skipped=skipped)
    assert ids == ["a", "c"] and embeddings.shape == (2, 32)
    assert skipped == {"truncated": 1, "not an image": 1}
    embeddings, ids = encode_images(spec, module, images.slice(3), CPU, workers=0)
    assert ids == [] and embeddings.shape == (0, 32)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_texts_are_encoded_as_open_clip_does_in_their_order(tiny_teacher: str, batch_size: int) -> None:
    spec, module = load_teacher(tiny_teacher, "text")
    embeddings = encode_texts(spec, module, CAPTIONS, CPU, batch_size)
    model, _, _ = open_clip.create_model_and_transforms(tiny_teacher)
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer(tiny_teacher)(CAPTIONS))
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)


def test_each_different_caption_is_encoded_once_and_cut_to_its_batch(tiny_teacher: str) -> None:
    spec, module = load_teacher(tiny_teacher, "text")
    shapes: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    encode_texts(spec, module, CAPTIONS[:3] * 5, CPU, batch_size=1)
    assert shapes == [(1, 4), (1, 11)]  # "a dog" with start and end; the other one's 9 words


def test_a_tower_that_sees_padding_gets_all_of_it(tiny_teacher: str) -> None:
    spec, _ = load_teacher(tiny_teacher, "text")
    seeing = type(spec)(**{**spec.__dict__, "cfg": spec.cfg | {"no_causal_mask": True, "pool_type": "last"}})
    module = seeing.build().eval()
    shapes: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    embeddings = encode_texts(seeing, module, ["a dog", "a cat"], CPU)
    assert shapes == [(2, 77)] and embeddings.shape == (2, 32)


def test_benchmark_pairs_captions_with_photos() -> None:
    images = images_table(["a", "b", "c"], [Path("x")] * 3)
    strings = pa.large_string()
    owners = pa.array(["c", None, "a", "gone", "c"], strings)
    captions = pa.table({"text": pa.array(["1", "2", "3", "4", "5"], strings), "image_id": owners})
    benchmark = Benchmark.of(images, captions)
    assert benchmark.captions == ["1", "3", "5"]
    assert benchmark.image_of_caption.tolist() == [2, 0, 2]
    assert benchmark.dropped == 2
    with pytest.raises(ValueError, match="none of 1 captions"):
        Benchmark.of(images, captions.slice(1, 1))


def test_pairings_put_the_teacher_first_and_say_what_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(60) % 20
    teacher = torch.randn(20, 8, generator=generator)
    student = teacher + torch.randn(20, 8, generator=generator)
    texts = teacher[owner] + 0.5 * torch.randn(60, 8, generator=generator)
    pairings = measure_pairings({"student": student, "teacher": teacher}, {"teacher": texts}, owner)
    assert [(pair["image"], pair["text"]) for pair in pairings] == [("teacher", "teacher"), ("student", "teacher")]
    assert set(pairings[0]["kept"].values()) == {100}
    expected = retrieval_metrics(student, texts, owner)
    assert expected.items() <= pairings[1].items()
    assert pairings[1]["kept"]["t2i_r1"] == 100 * (expected["t2i_r1"] / pairings[0]["t2i_r1"]) < 100


def test_kept_is_unknown_where_the_teacher_finds_nothing() -> None:
    wrong = torch.eye(20).roll(1, 0)
    pair = measure_pairings({"teacher": torch.eye(20)}, {"teacher": wrong}, torch.arange(20))[0]
    assert pair["t2i_r1"] == 0 and pair["kept"]["t2i_r1"] is None
