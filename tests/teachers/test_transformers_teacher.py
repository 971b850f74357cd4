"""Hugging Face teachers, from small folders with random weights, against their own processors and features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

from clip_distill.pixels.views import Views, normalise
from clip_distill.store.manifest import flatten
from clip_distill.teachers import load_teacher
from clip_distill.teachers.transformers import preprocess_cfg
from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.hugging_face import describe
from clip_distill.tokens.spec import TokenizerSpec, identity
from clip_distill.towers.spec import TOWERS

transformers = pytest.importorskip("transformers")

TEXTS = ["a dog", "A red ball on the grass with two cats", "", "water " * 50]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
END = 22  # of text, in the tokenizer made here


def save_model(folder: Path, kind: str, make_tokenizer: Callable[..., None], pad_is_end: bool) -> str:
    """A CLIP (causal text, padded with its end token) or a SigLIP (neither), with processor and tokenizer."""
    torch.manual_seed(0)
    text = SIZES | {"vocab_size": 24, "max_position_embeddings": 16, "eos_token_id": END, "pad_token_id": 1}
    vision = SIZES | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
        model, processor = transformers.CLIPModel(config), transformers.CLIPImageProcessor
        processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    else:
        text |= {"projection_size": 32}
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    model.save_pretrained(folder)
    make_tokenizer(folder, 16, pad_is_end=pad_is_end)
    return f"transformers:{folder}"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., None]) -> dict[str, str]:
    root = tmp_path_factory.mktemp("teachers")
    return {
        "clip": save_model(root / "clip", "clip", make_tokenizer, pad_is_end=True),
        "clip with its own padding": save_model(root / "clip-pad", "clip", make_tokenizer, pad_is_end=False),
        "siglip": save_model(root / "siglip", "siglip", make_tokenizer, pad_is_end=False),
        "siglip padded with its end": save_model(root / "siglip-end", "siglip", make_tokenizer, pad_is_end=True),
    }


KINDS = ["clip", "clip with its own padding", "siglip", "siglip padded with its end"]


def photo(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def features(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return tensor


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_the_models_own_pipeline(teachers: dict[str, str], kind: str) -> None:
    folder = teachers[kind].removeprefix("transformers:")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image = photo(50, 40)
    encoded = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    encoded.pop("token_type_ids", None)
    for tower in TOWERS:
        spec, module = load_teacher(teachers[kind], tower)
        with torch.no_grad():
            if tower == "image":
                expected = features(model.get_image_features(**processor(images=image, return_tensors="pt")))
                inputs = normalise(Views(spec.preprocess)(image, "id", 0)[None], spec.preprocess)
            else:
                expected = features(model.get_text_features(**encoded))
                token_spec = TokenizerSpec(**json.loads(json.dumps(spec.tokenizer)))
                inputs = tokenize(token_spec, TEXTS).pad(token_spec.pad_id, None if spec.causal else 16)
            assert torch.allclose(module(inputs), expected, atol=1e-5)
            assert len(torch.unique(expected, dim=0)) == len(inputs)
        assert (
            spec.embed_dim == expected.shape[1] == spec.teacher["embed_dim"] == (20 if "clip" in kind.split() else 32)
        )
        assert spec.teacher["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
        assert json.loads(json.dumps(spec.teacher)) == spec.teacher
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        spec.build().load_state_dict(module.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_one_tower_is_kept(teachers: dict[str, str], kind: str) -> None:
    images, texts = (set(load_teacher(teachers[kind], tower)[1].state_dict()) for tower in TOWERS)
    assert not any("text" in name for name in images)
    assert not any("vision" in name or "visual" in name for name in texts)


@pytest.mark.parametrize(("kind", "causal"), list(zip(KINDS, [True, True, False, False], strict=True)))
def test_only_causal_towers_may_be_cut(teachers: dict[str, str], kind: str, causal: bool) -> None:
    spec, module = load_teacher(teachers[kind], "text")
    assert spec.causal is causal
    token_spec = TokenizerSpec(**spec.tokenizer)
    tokens = tokenize(token_spec, TEXTS[:2])
    short, full = tokens.pad(token_spec.pad_id), tokens.pad(token_spec.pad_id, 16)
    assert short.shape[1] < 16
    assert torch.allclose(module(short), module(full), atol=1e-5) is causal


def test_the_end_survives_where_it_is_also_the_padding(teachers: dict[str, str]) -> None:
    spec = TokenizerSpec(**load_teacher(teachers["clip"], "text")[0].tokenizer)
    assert spec.pad_is_end
    tokens = tokenize(spec, TEXTS)
    assert (tokens.flat[tokens.offsets[1:] - 1] == END).all()
    assert tokens.lengths.tolist() == [3, 10, 1, 16]
    assert torch.equal(tokens.pad(spec.pad_id, 16), load_tokenizer(spec)(TEXTS))


def test_siglips_own_tokenizer(tmp_path: Path) -> None:
    """SentencePiece behind SigLIP's cleaning; padded with the end token; no attention mask."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(["a dog runs", "red ball on the grass", "two cats"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "corpus.txt", model_prefix=tmp_path / "spiece", vocab_size=24, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    file = str(tmp_path / "spiece.model")
    tokenizer = transformers.SiglipTokenizer(vocab_file=file, model_max_length=16, model_input_names=["input_ids"])
    tokenizer.save_pretrained(tmp_path)
    spec = describe(tokenizer, f"transformers:{tmp_path}", 16)
    ragged = tokenize(spec, ["A dog, runs!", ""])
    expected = tokenizer(["A dog, runs!", ""], padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert torch.equal(ragged.pad(spec.pad_id, 16), expected)
    assert ragged.flat[ragged.offsets[1:] - 1].tolist() == [tokenizer.eos_token_id] * 2
    assert ragged.lengths[1] == 1


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (40, 51), (300, 40)])
def test_pixels_are_the_processors(size: tuple[int, int]) -> None:
    cases: list[tuple[Any, Any]] = [
        (transformers.CLIPImageProcessor, transformers.CLIPImageProcessorPil),
        (transformers.SiglipImageProcessor, transformers.SiglipImageProcessorPil),
    ]
    for fast, exact in cases:
        preprocess = preprocess_cfg("test", fast())
        pixels = normalise(Views(preprocess)(photo(*size), "id", 0)[None], preprocess)
        assert torch.allclose(pixels, torch.tensor(exact()(images=photo(*size))["pixel_values"][0]), atol=1e-6)
        level = 1 / 255 / min(preprocess["std"])
        assert (pixels[0] - fast()(images=photo(*size))["pixel_values"][0]).abs().max() < 2.5 * level


def test_a_margin_of_3_modulo_4_shifts_the_crop_by_one_pixel() -> None:
    preprocess = preprocess_cfg("test", transformers.CLIPImageProcessor())
    image = photo(227, 224)
    ours = normalise(Views(preprocess)(image, "id", 0)[None], preprocess)[0]
    theirs = torch.tensor(transformers.CLIPImageProcessorPil()(images=image)["pixel_values"][0])
    assert torch.allclose(ours[:, :, :-1], theirs[:, :, 1:], atol=1e-6)


def test_what_open_clips_preprocessing_can_not_express_is_refused() -> None:
    wide = transformers.CLIPImageProcessor(size={"shortest_edge": 256})
    lanczos = transformers.CLIPImageProcessor(resample=1)
    raw = transformers.SiglipImageProcessor(do_normalize=False)
    for processor in (wide, lanczos, raw, transformers.Siglip2ImageProcessor()):
        with pytest.raises(ValueError, match="expected an image processor that resizes to a square"):
            preprocess_cfg("test", processor)


def test_a_copied_folder_is_the_same_teacher(teachers: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(teachers["siglip"].removeprefix("transformers:"), tmp_path / "copy")
    here, there = (load_teacher(n, "text")[0].teacher for n in (teachers["siglip"], f"transformers:{tmp_path}/copy"))
    assert here["weights_sha256"] == there["weights_sha256"]
    assert flatten(identity(here["tokenizer"])) == flatten(identity(there["tokenizer"]))


def test_missing_weights_are_refused(teachers: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(teachers["clip"].removeprefix("transformers:"), tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"expected weights for all of the model, found none that fit \['text_model"):
        load_teacher(f"transformers:{tmp_path}/copy", "text")


def test_other_models_and_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="transformers could not load it"):
        load_teacher("transformers:nobody/nothing", "text")
    with pytest.raises(ValueError, match="transformers could not load it"):
        load_teacher(f"transformers:{tmp_path}", "text")
