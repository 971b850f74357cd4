"""Two towers as an open_clip folder, which `open_clip.create_model_and_transforms('local-dir:FOLDER')` loads.

Shapes: B images or captions, L tokens, S image side, D embedding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from torch import Tensor
from torch.nn import functional as F

from clip_distill.exports.target import Given, Loaded
from clip_distill.exports.vocabulary import expand_vocabulary
from clip_distill.pixels.plain import open_clip_cfg
from clip_distill.pixels.views import normalise
from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import write_bytes, write_json
from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.spec import PLAIN, TokenizerSpec
from clip_distill.tokens.trained import open_clip_options
from clip_distill.towers.registered import BUILDER as CUT
from clip_distill.towers.registered import name_of
from clip_distill.towers.spec import TowerSpec

OTHERS = {"timm_model_name", "hf_model_name"}  # of towers whose code is not open_clip's
MIN_COSINE = 0.9999
MAX_DIFFERENCE = 1e-3  # of embeddings scaled to length 1, per number
PROBES = [
    "a dog",
    "two children play on a beach while a dog chases a red ball",
    "Ein Fahrrad lehnt an der Wand & es regnet",
    "一只猫坐在窗边",
    "a long caption " * 60,
]


def write(folder: Path, given: Given) -> None:
    """Write `open_clip_config.json`, `open_clip_model.safetensors` and a Hugging Face tokenizer's files; check them.

    Args:
        folder: Empty folder.
        given: What is exported.

    Raises:
        ValueError: Its weights are not to be fp32, the towers don't fit together or aren't open_clip's own, or
            open_clip loads something else back.
    """
    if given.weights != "fp32":
        raise InvalidValue(f"--to open_clip: expected --weights fp32, which open_clip loads, found {given.weights}")
    image, text, teacher = given.image, expand_vocabulary(*given.text), given.teacher
    model_cfg = describe(image[0], text[0], teacher)
    inner = "visual.trunk" if image[0].builder == CUT else "visual"  # within timm's adapter
    state = {f"{inner}.{name}": tensor for name, tensor in image[1].state_dict().items()}
    state |= {f"text.{name}": tensor for name, tensor in text[1].state_dict().items()}
    state["logit_scale"] = torch.tensor(math.log(teacher["logit_scale"]))
    if "init_logit_bias" in model_cfg:
        state["logit_bias"] = torch.tensor(float(model_cfg["init_logit_bias"]))
    write_json(folder / HF_CONFIG_NAME, {"model_cfg": model_cfg, "preprocess_cfg": open_clip_cfg(image[0].preprocess)})
    # clones, since safetensors refuses tensors that share memory
    clones = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    write_bytes(folder / HF_SAFE_WEIGHTS_NAME, safetensors.torch.save(clones))
    tokenizer = TokenizerSpec(**text[0].tokenizer)
    if tokenizer.source != "clip":
        loaded: Any = load_tokenizer(tokenizer)
        loaded.tokenizer.save_pretrained(folder)
    verify(folder, image, text)


def describe(image: TowerSpec, text: TowerSpec, teacher: dict[str, Any]) -> dict[str, Any]:
    """The `model_cfg` of two towers.

    Raises:
        ValueError: A tower is not open_clip's own, or they differ in width or in `quick_gelu`.
    """
    vision_cfg = dict(image.cfg)
    if image.builder == CUT:
        size = image.preprocess["size"]
        vision_cfg = {"timm_model_name": name_of(image.cfg), "timm_pool": "", "timm_proj": "", "image_size": size}
    for spec in (image, text):
        if spec.builder not in (None, CUT):
            raise InvalidValue(
                f"the {spec.tower} tower is built by {spec.builder}: expected one of open_clip's own towers, since an "
                "open_clip folder can describe no other"
            )
    if image.embed_dim != text.embed_dim:
        raise InvalidValue(f"expected towers of one width, found image {image.embed_dim} and text {text.embed_dim}")
    text_cfg = text.cfg | open_clip_options(text.tokenizer)
    if text.tokenizer["source"] != "clip":
        # any name makes open_clip read the tokenizer's files from the folder itself
        text_cfg.setdefault("hf_tokenizer_name", Path(text.tokenizer["source"].removeprefix(PLAIN)).name)
    model_cfg = {
        "embed_dim": image.embed_dim,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
        "quick_gelu": shared_quick_gelu(image, text),
        "custom_text": True,
    }
    bias = teacher.get("logit_bias", teacher.get("model_cfg", {}).get("init_logit_bias"))
    return model_cfg if bias is None else model_cfg | {"init_logit_bias": bias}


def shared_quick_gelu(image: TowerSpec, text: TowerSpec) -> bool:
    """open_clip's one switch for both towers; timm's, Hugging Face's and ResNet towers have their own activation."""
    values = {
        spec.quick_gelu
        for spec in (image, text)
        if not (spec.builder or spec.cfg.keys() & OTHERS or isinstance(spec.cfg.get("layers"), list))
    }
    if len(values) > 1:
        raise InvalidValue(
            f"quick_gelu: expected the same in both towers, found image {image.quick_gelu} and text {text.quick_gelu}; "
            "open_clip has one switch for both. Train the student with its teacher's activation."
        )
    return values.pop() if values else False


@torch.inference_mode()
def verify(folder: Path, image: Loaded, text: Loaded) -> None:
    """Load the folder with open_clip, and compare preprocessing, tokens and embeddings with where they came from.

    Raises:
        ValueError: Something differs: the message says what, and by how much.
    """
    name = f"local-dir:{folder}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    model.eval()
    expected, found = (
        _plain(cfg) for cfg in (open_clip_cfg(image[0].preprocess), open_clip.get_model_preprocess_cfg(model))
    )
    for key, value in expected.items():
        if found.get(key) != value:
            raise InvalidValue(
                f"export: preprocessing {key!r}: expected {value!r}, but open_clip loads {found.get(key)!r}"
            )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, *expected["size"]), dtype=torch.uint8, generator=generator)
    pixels = normalise(noise, image[0].preprocess)  # [B, 3, S, S]
    _require_close("image", image[1].eval()(pixels), model.encode_image(pixels))
    tokens = tokenize(TokenizerSpec(**text[0].tokenizer), PROBES).pad(
        text[0].tokenizer["pad_id"], text[0].tokenizer["context_length"]
    )  # [B, L]
    if not torch.equal(tokens, open_clip.get_tokenizer(name)(PROBES)):
        raise InvalidValue(f"export: open_clip picks another tokenizer than {text[0].tokenizer['source']!r} here")
    _require_close("text", text[1].eval()(tokens), model.encode_text(tokens))


def _plain(preprocess: dict[str, Any]) -> dict[str, Any]:
    """A `preprocess_cfg` with the size as [S, S] and lists for tuples."""
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in preprocess.items()}
    return lists | {"size": [lists["size"]] * 2 if isinstance(lists["size"], int) else lists["size"]}


def _require_close(tower: str, expected: Tensor, loaded: Tensor) -> None:
    """Two [B, D] must point the same way, row by row, and number by number once scaled to length 1."""
    expected, loaded = (F.normalize(embeddings.float(), dim=1) for embeddings in (expected, loaded))
    cosine = float((expected * loaded).sum(1).min())
    difference = float((expected - loaded).abs().max())
    if not (cosine >= MIN_COSINE and difference <= MAX_DIFFERENCE):
        raise InvalidValue(
            f"export: the {tower} tower gives other embeddings when open_clip loads it: expected cosine ≥ {MIN_COSINE} "
            f"and differences ≤ {MAX_DIFFERENCE}, found {cosine:.6f} and {difference:.2e}"
        )
