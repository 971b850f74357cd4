# what needs onnx is imported once it is known to be there
"""What each program reads, made by the verb and fed as the program feeds it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch.nn import functional as F

pytest.importorskip("onnx")

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.exports import TARGETS
from clip_distill.exports.graph import ImageGraph, Output, TextGraph
from clip_distill.exports.program import require_fit
from clip_distill.exports.target import CLIP_MEAN, CLIP_STD, Given, ImageFile, TextFile
from clip_distill.exports.targets.immich import IMMICH
from clip_distill.exports.targets.rclip import RCLIP
from clip_distill.exports.tokenizer_files import clip_tokenizer
from clip_distill.pixels.views import normalise
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import load_tower

CAPTIONS = ["a red circle", "A blue square, seen from far away!", "two dogs & a cat's 3 toys", "一只猫 🐈 ça va"]
PROGRAMS = "rclip,immich,fastembed,transformers.js,onnx-uint8"


@pytest.fixture(scope="module")
def folder(tiny_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("targets")
    students = ["--image_student", str(tiny_runs["image"]), "--text_student", str(tiny_runs["text"])]
    cli.main(["export", *students, "--to", PROGRAMS, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def student(tiny_runs: dict[str, Path]) -> Any:
    return cd.load(image=tiny_runs["image"], text=tiny_runs["text"])


def feed(path: Path, inputs: NDArray[Any], name: str) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == [name]
    return np.asarray(session.run(None, {name: inputs})[0])


def require_same(found: NDArray[Any], expected: NDArray[Any], width: int) -> None:
    """The program's numbers are the student's at unit length, and zeros behind them."""
    assert found.shape == (len(expected), width)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, : expected.shape[1]], unit, atol=1e-4)
    assert not found[:, expected.shape[1] :].any()


def test_rclip_feeds_clips_ids_and_photos_of_256_pixels(folder: Path, student: Any) -> None:
    root = folder / "rclip/ViT-B-32-256-datacomp_s34b_b86k"
    ids = tokenize(TokenizerSpec("clip", 77, 49408), CAPTIONS).pad(0, 77).numpy()
    require_same(feed(root / "textual.onnx", ids, "input"), student.encode_text(CAPTIONS), 512)
    flat = np.full((2, 3, 256, 256), 0.25, np.float32)  # what is of one colour is so at any size
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    expected = student.encode_image([np.full((32, 32, 3), 64, np.uint8)])
    found = feed(root / "visual.onnx", ((flat * 0 + 64 / 255 - mean) / std).astype(np.float32), "input")
    require_same(found, np.concatenate([expected, expected]), 512)
    assert (
        b"bpe_simple_vocab_16"
        in gzip.decompress((folder / "rclip/tokenizer/bpe_simple_vocab_16e6.txt.gz").read_bytes())[:20]
    )


def test_immich_pads_by_its_own_token_and_feeds_int32(folder: Path, student: Any) -> None:
    root = folder / "immich"
    tokenizer = Tokenizer.from_file(str(root / "textual/tokenizer.json"))
    pad = json.loads((root / "textual/tokenizer_config.json").read_text())["pad_token"]
    length = json.loads((root / "config.json").read_text())["text_cfg"]["context_length"]
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=length)
    ids = np.array([each.ids for each in tokenizer.encode_batch(CAPTIONS)], np.int32)
    assert ids[0, -1] == 49407  # not the student's own padding
    require_same(feed(root / "textual/model.onnx", ids, "text"), student.encode_text(CAPTIONS), 512)
    assert json.loads((root / "visual/preprocess_cfg.json").read_text())["std"] == [0.25] * 3


@pytest.mark.parametrize(
    ("program", "file"), [("fastembed", "text/model.onnx"), ("transformers.js", "onnx/text_model.onnx")]
)
def test_ids_of_any_length_go_in(program: str, file: str, folder: Path, student: Any) -> None:
    place = folder / program
    tokenizer = Tokenizer.from_file(str(next(place.rglob("tokenizer.json"))))
    ids = np.array([tokenizer.encode(CAPTIONS[0]).ids])
    assert ids.shape == (1, 5)
    require_same(feed(place / file, ids, "input_ids"), student.encode_text(CAPTIONS[:1]), 32)
    processor = json.loads(next(place.rglob("preprocessor_config.json")).read_text())
    assert processor["size"] == {"shortest_edge": 32} and processor["image_std"] == [0.25] * 3


@pytest.mark.parametrize("program", PROGRAMS.split(","))
def test_every_folder_loads_back(program: str, folder: Path, student: Any, tiny_data: Path) -> None:
    photos = sorted((tiny_data / "image").iterdir())[:3]
    model = cd.load(folder / program)
    dim = student.encode_text(CAPTIONS).shape[1]
    for found, expected, least in (
        (model.encode_text(CAPTIONS), student.encode_text(CAPTIONS), 0.9999),
        (model.encode_image(photos), student.encode_image(photos), 0.5 if program == "rclip" else 0.9999),
    ):
        cosine = F.cosine_similarity(torch.from_numpy(found[:, :dim]), torch.from_numpy(expected))
        assert float(cosine.min()) > least  # rclip's photos are 256 pixels wide before they are 32
    record = json.loads((folder / program / "export.json").read_text())
    for name, facts in record["files"].items():
        assert hashlib.sha256((folder / program / name).read_bytes()).hexdigest() == facts["sha256"]
    assert record["target"] == program and record["towers"]["text"]["least_cosine_to_torch"] > 0.9999
    card = (folder / program / "README.md").read_text(encoding="utf-8")
    assert record["teacher"]["name"] in card and "老师模型" in card


def test_what_a_program_cannot_run_is_refused(tiny_runs: dict[str, Path]) -> None:
    (image, seer), (text, reader) = load_tower(tiny_runs["image"]), load_tower(tiny_runs["text"])
    wide = Given((image, seer), (text, reader), {})
    text.tokenizer["source"] = "clip-pruned"
    with pytest.raises(ValueError, match="found 'clip-pruned'. Train the text student in its teacher's own tokens"):
        require_fit(RCLIP, wide)
    text.tokenizer["source"] = "clip"
    broad = dataclasses.replace(text, embed_dim=2048)
    with pytest.raises(ValueError, match="--to immich: expected at most 1152 numbers, found 2048"):
        require_fit(IMMICH, dataclasses.replace(wide, text=(broad, reader)))


def differing(texts: list[str]) -> list[str]:
    """Texts of which tokenizer.json makes other ids than open_clip does."""
    tokens = tokenize(TokenizerSpec("clip", 77, 49408), texts)
    found = [each.ids for each in clip_tokenizer().encode_batch(texts)]
    cut = [ids if len(ids) <= 77 else [*ids[:76], ids[-1]] for ids in found]
    spans = zip(tokens.offsets, tokens.offsets[1:], strict=False)
    return [text for text, ids, (a, b) in zip(texts, cut, spans, strict=True) if ids != tokens.flat[a:b].tolist()]


def test_clips_tokenizer_json_gives_open_clips_ids() -> None:
    typed = [
        "a cat’s “toy”",
        "一个人，站着！",
        "ﬁsh & chips",
        "👩‍👩‍👧 🏳️‍🌈 👍🏽",
        "İstanbul ĲSSEL",
        "e\u0301te\u0301",
        "tab\there",
    ]
    assert differing([*CAPTIONS, *typed, "a long caption " * 60]) == []


def test_every_script_and_emoji_has_the_same_ids() -> None:
    letters = [chr(c) for c in range(32, 0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co", "Cc")]
    texts = ["".join(letters[start : start + 12]) for start in range(0, len(letters), 12)][::40]
    emoji = [f"a {letter} here" for letter in letters if unicodedata.category(letter) == "So"][::20]
    assert len(texts) > 280 and len(emoji) > 300
    assert differing(emoji) == []
    assert len(differing(texts)) < 0.005 * len(texts)  # accents in an order that ftfy repairs


@torch.inference_mode()
def test_another_normalisation_is_undone_and_another_size_resized(tiny_runs: dict[str, Path]) -> None:
    spec, tower = load_tower(tiny_runs["image"])
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = tower(normalise(pixels, spec.preprocess))
    theirs = ImageFile("x", "x", "y", mean=CLIP_MEAN, std=CLIP_STD)
    fed = normalise(pixels, spec.preprocess | {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)})
    torch.testing.assert_close(
        ImageGraph(spec, tower, theirs, Output(32, 32, False))(fed), expected, rtol=1e-3, atol=1e-4
    )
    raw = ImageFile("x", "x", "y", dtype="uint8", layout="NHWC")
    found = ImageGraph(spec, tower, raw, Output(32, 40, True))(pixels.permute(0, 2, 3, 1))
    torch.testing.assert_close(found[:, :32], F.normalize(expected, dim=1), rtol=1e-3, atol=1e-4)
    assert not found[:, 32:].any()
    double = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large = ImageGraph(spec, tower, ImageFile("x", "x", "y", 64), Output(32, 32, False))
    near = large(normalise(double, spec.preprocess))
    assert float(F.cosine_similarity(near, expected).min()) > 0.9


def test_ids_beyond_the_context_are_cut_with_their_end_kept(tiny_runs: dict[str, Path]) -> None:
    spec, tower = load_tower(tiny_runs["text"])
    short = dict(spec.tokenizer) | {"context_length": 8}
    spec = dataclasses.replace(spec, tokenizer=short)
    graph = TextGraph(spec, tower, TextFile("x", "x", "y", length=77), Output(32, 32, False))
    long = "a very long caption with many more words than eight tokens can hold"
    fed = tokenize(TokenizerSpec("clip", 77, 49408), [long, "a dog"]).pad(49407, 77)
    torch.testing.assert_close(graph(fed), tower(tokenize(TokenizerSpec(**short), [long, "a dog"]).pad(0, 8)))


def test_int8_ranges_are_set_by_own_photos(tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path) -> None:
    loose = {"min_cosine": 0.5, "max_points_lost": 100.0}  # random weights, two layers
    students = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    cd.export(**students, to="onnx", weights="int8", calibrate=tiny_data, photos=6, out=tmp_path / "own", **loose)
    cd.export(**students, to="onnx", weights="int8", out=tmp_path / "none", **loose)
    own, none = (json.loads((tmp_path / name / "export.json").read_text()) for name in ("own", "none"))
    assert own["compared_on"] == {"photos": 6, "captions": 6} and none["compared_on"] == {"photos": 0, "captions": 0}
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "own/image.onnx").graph.node}
    assert "QuantizeLinear" in kinds and "DynamicQuantizeLinear" not in kinds
    photo = Image.open(sorted((tiny_data / "image").iterdir())[0])
    found, whole = (m.encode_image([photo]) for m in (cd.load(tmp_path / "own"), cd.load(tiny_runs["image"])))
    assert float(F.cosine_similarity(torch.from_numpy(found), torch.from_numpy(whole))[0]) > 0.9


def test_the_list_says_what_each_is_for_and_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    cli.main(["export", "--to", "list"])
    lines = {
        words[1]: " ".join(words) for line in capsys.readouterr().out.splitlines() if len(words := line.split()) > 2
    }
    assert set(TARGETS) <= set(lines)
    assert "clip-distill[onnx]" in lines["rclip"] and "clip-distill[openvino]" in lines["openvino"]
    assert "fp32 fp16 int8 int4" in lines["web"]
