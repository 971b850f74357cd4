"""Any open_clip model as a teacher, with its own preprocessing, tokenizer and width."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import parse_model_name
from safetensors import SafetensorError
from torch import nn

from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.hub import hub_or_cache
from clip_distill.tokens import hugging_face as hf_tokens
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec, cut_padding

CONFIG = "open_clip_config.json"
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
        ValueError: The model or its weights are unknown or can't be fetched, or the folder is not an open_clip folder.
        ImportError: Its tokenizer or text tower needs the `transformers` package.
    """
    model_name, weights = split_name(name)
    try:
        # a folder's text tower or tokenizer may still name one on the hub
        with hub_or_cache() if needs_hub(model_name) else contextlib.nullcontext():
            model_cfg = read_config(model_name, weights)
            model = create(model_name, weights, model_cfg["quick_gelu"])
            tokenizer = tokenizer_spec(model_name, model_cfg["text_cfg"])
    except ImportError as error:
        fix = "install it with: pip install 'clip-distill[transformers]'"
        raise MissingPackage(f"teacher {name!r} needs {error.name or error}; {fix}") from error
    except (RuntimeError, OSError, TypeError, KeyError, SafetensorError) as error:
        raise InvalidValue(
            f"teacher {name!r}: open_clip could not load it: {reason(error)}\n"
            "Expected MODEL/WEIGHTS (`clip-distill embed --help` has examples; open_clip.list_pretrained() lists all), "
            "local-dir:PATH or hf-hub:ORG/REPO. Without a network, download the folder elsewhere and use local-dir:."
        ) from error
    preprocess = jsonable(open_clip.get_model_preprocess_cfg(model))
    teacher = {
        "name": name,
        "weights_sha256": hash_weights(model),
        "embed_dim": model_cfg["embed_dim"],
        "logit_scale": float(model.logit_scale.detach().exp()),
        "model_cfg": model_cfg,
        "preprocess": preprocess,
        "tokenizer": tokenizer.as_dict(),
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
    model, _, weights = name.partition("/")  # weights may be a file's path
    if not weights:
        known = open_clip.list_pretrained_tags_by_model(model)
        hint = f"known weights of {model}: {', '.join(known)}" if known else "no open_clip model has this name"
        raise InvalidValue(f"teacher {name!r}: expected MODEL/WEIGHTS, for instance ViT-B-32/openai; {hint}")
    return model, weights


def needs_hub(model_name: str) -> bool:
    """Whether loading may ask the hub: all but folders whose text tower is open_clip's own."""
    schema, identifier = parse_model_name(model_name)
    config = Path(identifier) / CONFIG
    return schema != "local-dir" or (config.is_file() and '"hf_model_name"' in config.read_text(encoding="utf-8"))


def read_config(model_name: str, weights: str | None) -> dict[str, Any]:
    """The model's `model_cfg`, with `quick_gelu` stated: some weights need it unsaid by the name."""
    schema, identifier = parse_model_name(model_name)
    if schema == "local-dir" and not (Path(identifier) / CONFIG).is_file():
        raise InvalidValue(
            f"teacher {model_name!r}: expected an open_clip folder with {CONFIG}, found none in "
            f"{Path(identifier).resolve()}. If it lies elsewhere now, name it with --teacher local-dir:PATH"
        )
    cfg = open_clip.get_model_config(model_name)
    if cfg is None:
        raise InvalidValue(
            f"teacher {model_name!r}: no open_clip model has this name; open_clip.list_models() lists them"
        )
    tag = open_clip.get_pretrained_cfg(model_name, weights) if weights else {}
    quick_gelu = bool(cfg.get("quick_gelu", False) or tag.get("quick_gelu", False))
    cfg = {key: value for key, value in cfg.items() if key not in ("custom_text", "quick_gelu")}
    for part in (cfg["vision_cfg"], cfg["text_cfg"]):
        part.pop("output_tokens", None)  # CoCa's towers also return their tokens; `create` turns that off
    stated: dict[str, Any] = jsonable(cfg) | {"quick_gelu": quick_gelu}
    return stated


def create(model_name: str, weights: str | None, quick_gelu: bool) -> Any:
    """The whole model with its weights, as one class with `.visual` and `.text` for every architecture."""
    logging.disable(logging.ERROR)  # what open_clip logs on failure, its exception says again
    try:
        model = open_clip.create_model(
            model_name,
            pretrained=weights,
            force_custom_text=True,
            force_quick_gelu=quick_gelu,
            require_pretrained=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    for part in (model.visual, model.text):
        part.output_tokens = False
    return model.eval()


def tokenizer_spec(model_name: str, text_cfg: dict[str, Any]) -> TokenizerSpec:
    """Describe the tokenizer that open_clip would pick for this model."""
    tokenizer = open_clip.get_tokenizer(model_name)
    keys = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
    cfg = {key: text_cfg[key] for key in keys if text_cfg.get(key)}
    length = int(tokenizer.context_length)
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return TokenizerSpec("clip", length, tokenizer.vocab_size, cfg=cfg)
    folder = parse_model_name(model_name)[1] if model_name.startswith("local-dir:") else None
    source = str(Path(folder).resolve()) if folder else text_cfg["hf_tokenizer_name"]
    return hf_tokens.describe(tokenizer.tokenizer, source, length, int(text_cfg.get("vocab_size") or 0), cfg)


def reason(error: Exception) -> str:
    """The first lines of a message: a mismatch of weights lists every tensor."""
    lines = str(error).strip().splitlines() or [repr(error)]
    return "\n  ".join(lines[:6] + (["…"] if len(lines) > 6 else []))


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over every tensor's name, shape, type and bytes: the same whatever file the weights were in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        if array.numel():
            digest.update(memoryview(array.reshape(-1).view(dtype=torch.uint8).numpy()))
    return digest.hexdigest()


def jsonable(value: Any) -> Any:
    """Tuples as lists, the way they come back from JSON, so that saved and fresh configurations compare equal."""
    return json.loads(json.dumps(value))
