"""Any open_clip model as a teacher, with its own preprocessing, tokenizer and width."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import _get_hf_config, parse_model_name
from torch import nn

from clip_distill.data.tokens import TokenizerSpec
from clip_distill.towers import Tower, TowerSpec, cut_padding

# OpenAI's own names, as the first CLIP package and the original command line spell them
OPENAI_NAMES = {
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
}


def load(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module]:
    """Load one tower of `MODEL/WEIGHTS`, an OpenAI name, `local-dir:PATH` or `hf-hub:ORG/REPO`.

    Raises:
        ValueError: The model or its weights are unknown, or the folder is not an open_clip folder.
    """
    model_name, weights = split_name(name)
    model_cfg = read_config(model_name, weights)
    try:
        model = open_clip.create_model(
            model_name,
            pretrained=weights,
            force_custom_text=True,  # one class, `.visual` and `.text`, for every architecture
            force_quick_gelu=model_cfg["quick_gelu"],
            require_pretrained=True,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"teacher {name!r}: open_clip could not load it: {error}\n"
            "Expected MODEL/WEIGHTS (`clip-distill embed --help` has examples; open_clip.list_pretrained() lists all), "
            "local-dir:PATH or hf-hub:ORG/REPO. Without a network, download the folder elsewhere and use local-dir:."
        ) from error
    model.eval()
    preprocess = jsonable(open_clip.get_model_preprocess_cfg(model))
    teacher = {
        "name": name,
        "weights_sha256": hash_weights(model),
        "embed_dim": model_cfg["embed_dim"],
        "logit_scale": float(model.logit_scale.detach().exp()),
        "model_cfg": model_cfg,
        "preprocess": preprocess,
        "tokenizer": tokenizer_spec(model_name, model_cfg["text_cfg"]).as_dict(),
    }
    spec = TowerSpec(
        tower=tower,
        embed_dim=model_cfg["embed_dim"],
        cfg=model_cfg["vision_cfg" if tower == "image" else "text_cfg"],
        quick_gelu=model_cfg["quick_gelu"],
        preprocess=preprocess if tower == "image" else {},
        tokenizer=teacher["tokenizer"] if tower == "text" else {},
        teacher=teacher,
    )
    return spec, model.visual if tower == "image" else cut_padding(model.text)


def split_name(name: str) -> tuple[str, str | None]:
    """`ViT-B-32/openai` → ("ViT-B-32", "openai"); names with a schema hold their weights themselves."""
    if parse_model_name(name)[0] is not None:
        return name, None
    if name in OPENAI_NAMES:
        return OPENAI_NAMES[name], "openai"
    model, slash, weights = name.rpartition("/")
    if not slash:
        known = open_clip.list_pretrained_tags_by_model(name)
        hint = f"known weights of {name}: {', '.join(known)}" if known else "no open_clip model has this name"
        raise ValueError(f"teacher {name!r}: expected MODEL/WEIGHTS, for instance ViT-B-32/openai; {hint}")
    return model, weights


def read_config(model_name: str, weights: str | None) -> dict[str, Any]:
    """The model's `model_cfg`, with `quick_gelu` always stated: some weights need it although the model's name does not say so."""
    schema, identifier = parse_model_name(model_name)
    if schema == "local-dir":
        path = Path(identifier) / "open_clip_config.json"
        if not path.is_file():
            raise ValueError(f"teacher {model_name!r}: expected an open_clip folder with {path.name}, found no {path}")
        cfg = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    elif schema == "hf-hub":
        cfg = _get_hf_config(identifier)["model_cfg"]
    else:
        cfg = open_clip.get_model_config(model_name)
        if cfg is None:
            raise ValueError(f"teacher {model_name!r}: no open_clip model has this name; open_clip.list_models() lists them")
    tag = open_clip.get_pretrained_cfg(model_name, weights) if weights else {}
    quick_gelu = bool(cfg.get("quick_gelu", False) or tag.get("quick_gelu", False))
    cfg = {key: value for key, value in cfg.items() if key not in ("custom_text", "quick_gelu")}
    return jsonable(cfg) | {"quick_gelu": quick_gelu}


def tokenizer_spec(model_name: str, text_cfg: dict[str, Any]) -> TokenizerSpec:
    """Describe the tokenizer that open_clip would pick for this model."""
    tokenizer = open_clip.get_tokenizer(model_name)
    keys = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
    cfg = {key: text_cfg[key] for key in keys if text_cfg.get(key)}
    length = int(tokenizer.context_length)
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return TokenizerSpec("clip", length, tokenizer.vocab_size, cfg=cfg)
    vocab_size = int(text_cfg.get("vocab_size") or len(tokenizer.tokenizer))
    pad_id = int(tokenizer.tokenizer.pad_token_id or 0)
    source = str(getattr(tokenizer.tokenizer, "name_or_path", "") or text_cfg["hf_tokenizer_name"])
    return TokenizerSpec(source, length, vocab_size, pad_id, cfg)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over every tensor's name, shape, type and bytes: the same weights, the same hash, whatever file held them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(dtype=torch.uint8).numpy() if array.numel() else np.empty(0, np.uint8))
    return digest.hexdigest()


def jsonable(value: Any) -> Any:
    """Tuples as lists, the way they come back from JSON, so that saved and fresh configurations compare equal."""
    return json.loads(json.dumps(value))
