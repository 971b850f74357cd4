"""open_clip's own towers as transformers' CLIPModel: the same arithmetic under other names.

Shapes: w width, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_distill.exports.graph import end_of
from clip_distill.exports.target import Given
from clip_distill.towers.spec import THIN, TowerSpec

IMAGE_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", THIN}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def is_clip(given: Given) -> bool:
    """Whether CLIPModel computes what both towers do."""
    (image, _), (text, reader) = given.image, given.text
    plain = image.builder is None and text.builder is None and image.cfg.keys() <= IMAGE_KEYS
    return (
        plain
        and text.cfg.keys() <= TEXT_KEYS | {"hf_tokenizer_name", "tokenizer_kwargs"}
        and isinstance(image.cfg["layers"], int)
        and text.causal
        and end_of(text) is not None
        and "logit_bias" not in given.teacher
        and not isinstance(getattr(reader, "text_projection", None), torch.nn.Linear)
    )


def clip_config(given: Given) -> dict[str, Any]:
    """config.json of both towers."""
    (image, _), (text, _) = given.image, given.text
    size, width = image.cfg["image_size"], image.cfg["width"]
    side = size if isinstance(size, int) else size[0]
    end = end_of(text)
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": text.embed_dim,
        "logit_scale_init_value": math.log(given.teacher["logit_scale"]),
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": int(width * image.cfg.get("mlp_ratio", 4.0)),
            "num_hidden_layers": image.cfg["layers"],
            "num_attention_heads": width // image.cfg.get("head_width", 64),
            "image_size": side,
            "patch_size": image.cfg["patch_size"],
            "hidden_act": activation(image),
            "projection_dim": text.embed_dim,
        },
        "text_config": {
            "hidden_size": text.cfg["width"],
            "intermediate_size": int(text.cfg["width"] * text.cfg.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text.cfg["layers"],
            "num_attention_heads": text.cfg["heads"],
            "max_position_embeddings": text.tokenizer["context_length"],
            "vocab_size": text.cfg["vocab_size"],
            "hidden_act": activation(text),
            "projection_dim": text.embed_dim,
            "bos_token_id": 0,
            "eos_token_id": end,
            "pad_token_id": text.tokenizer["pad_id"],
        },
    }


def activation(spec: TowerSpec) -> str:
    return "quick_gelu" if spec.quick_gelu else "gelu"


def clip_state(image: Mapping[str, Tensor], text: Mapping[str, Tensor], logit_scale: float) -> dict[str, Tensor]:
    """CLIPModel's tensors.

    Args:
        image: State of open_clip's VisionTransformer.
        text: State of its TextTransformer, with one token table.
        logit_scale: Not its logarithm.
    """
    state = {"logit_scale": torch.tensor(math.log(logit_scale))}
    vision, reader = "vision_model.", "text_model."
    state[vision + "embeddings.class_embedding"] = image["class_embedding"]
    state[vision + "embeddings.patch_embedding.weight"] = image["conv1.weight"]
    state[vision + "embeddings.position_embedding.weight"] = image["positional_embedding"]
    state["visual_projection.weight"] = image["proj"].T
    state[reader + "embeddings.token_embedding.weight"] = text["token_embedding.weight"]
    state[reader + "embeddings.position_embedding.weight"] = text["positional_embedding"]
    state["text_projection.weight"] = text["text_projection"].T
    for tensors, place, norms in (
        (image, vision, {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}),  # spelt so there
        (text, reader, {"ln_final": "final_layer_norm"}),
    ):
        for ours, theirs in norms.items():
            for kind in ("weight", "bias"):
                state[f"{place}{theirs}.{kind}"] = tensors[f"{ours}.{kind}"]
        for name, tensor in tensors.items():
            if name.startswith("transformer.resblocks."):
                state |= block_state(name.removeprefix("transformer.resblocks."), tensor, place + "encoder.layers.")
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def block_state(name: str, tensor: Tensor, place: str) -> dict[str, Tensor]:
    """One tensor of a block; of queries, keys and values in one, three."""
    number, _, inner = name.partition(".")
    if inner.startswith("attn.in_proj_"):
        kind = inner.removeprefix("attn.in_proj_")
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
        return {f"{place}{number}.self_attn.{part}.{kind}": each for part, each in parts}
    module, _, kind = inner.rpartition(".")
    return {f"{place}{number}.{BLOCK[module]}.{kind}": tensor}
