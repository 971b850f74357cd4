"""Both towers as a folder that transformers loads.

Where both are open_clip's own, as its CLIPModel; else with code in the folder that `trust_remote_code` runs, and that
needs this package.
Shapes: B images or captions, L tokens, S image side, D embedding.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.resources
import math
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from clip_distill.exports.clip_model import clip_config, clip_state, is_clip
from clip_distill.exports.graph import sides
from clip_distill.exports.open_clip import PROBES
from clip_distill.exports.save import LEAST, Fidelity, require_near
from clip_distill.exports.target import Given
from clip_distill.exports.tokenizer_files import FILES, image_processor, write_tokenizer
from clip_distill.pixels.views import normalise
from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.files import write_bytes, write_json
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import THIN
from clip_distill.towers.thin import make_whole

CODE = "modeling_clip_distill.py"


def write(folder: Path, given: Given) -> None:
    """Write config.json, model.safetensors, the tokenizer's and the image processor's files; load them, and compare.

    Args:
        folder: Empty folder.
        given: What is exported.

    Raises:
        FellShort: transformers gives other embeddings.
        InvalidValue: Its weights are not to be fp32 or fp16, or no file can hold its tokenizer.
        MissingPackage: transformers is not installed.
    """
    source = given.text[0].tokenizer["source"]
    if given.weights not in LEAST:
        raise InvalidValue(f"--to transformers: expected --weights fp32 or fp16, found {given.weights}")
    if source == "clip-pruned" or not source.startswith(FILES):
        raise InvalidValue(
            f"--to transformers: expected a tokenizer that Hugging Face has, found {source!r}. Train the text student "
            "in its teacher's own tokens: --preset balanced does"
        )
    native = is_clip(given)
    config, state = _as_clip(given) if native else _as_own(given)
    kind = torch.float16 if given.weights == "fp16" else torch.float32
    config |= {"dtype": str(kind).removeprefix("torch."), "transformers_version": _version()}
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    state = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    clones = {name: tensor.contiguous().clone() for name, tensor in state.items()}  # none may share memory
    write_bytes(folder / "model.safetensors", safetensors.torch.save(clones, {"format": "pt"}))
    write_json(folder / "config.json", config)
    write_tokenizer(folder, given.text[0])
    processor = image_processor(given.image[0]) | {"processor_class": "CLIPProcessor"}
    write_json(folder / "preprocessor_config.json", processor)
    if not native:
        code = importlib.resources.files("clip_distill.exports.hub_code") / CODE
        with importlib.resources.as_file(code) as path:
            shutil.copyfile(path, folder / CODE)
    verify(folder, given, native)


def _version() -> str:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackage(
            f"--to transformers needs {error.name}; install it with: pip install 'clip-distill[transformers]'"
        ) from error
    return str(transformers.__version__)


def _as_clip(given: Given) -> tuple[dict[str, Any], dict[str, Tensor]]:
    spec, reader = given.text
    text: Any = make_whole(copy.deepcopy(reader)) if THIN in spec.cfg else reader
    scale = given.teacher["logit_scale"]
    return clip_config(given), clip_state(given.image[1].state_dict(), text.state_dict(), scale)


def _as_own(given: Given) -> tuple[dict[str, Any], dict[str, Tensor]]:
    (image, seer), (text, reader) = given.image, given.text
    module = CODE.removesuffix(".py")
    config = {
        "model_type": "clip_distill",
        "architectures": ["StudentModel"],
        "auto_map": {"AutoConfig": f"{module}.StudentConfig", "AutoModel": f"{module}.StudentModel"},
        "image": dataclasses.asdict(image),
        "text": dataclasses.asdict(text),
        "logit_scale": given.teacher["logit_scale"],
    }
    state = {"logit_scale": torch.tensor(math.log(given.teacher["logit_scale"]))}
    for name, module_of in (("image_tower", seer), ("text_tower", reader)):
        state |= {f"{name}.{key}": tensor for key, tensor in module_of.state_dict().items()}
    return config, state


@torch.inference_mode()
def verify(folder: Path, given: Given, native: bool) -> None:
    """Load the folder with transformers, offline, and compare tokens and embeddings.

    Raises:
        FellShort: They differ.
    """
    from transformers import AutoModel, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": not native}
    loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
    (image, seer), (text, reader) = given.image, given.text
    high, wide = sides(image.preprocess)
    noise = torch.randint(0, 256, (4, 3, high, wide), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = normalise(noise, image.preprocess)  # [B, 3, S, S]
    found = loaded.get_image_features(pixel_values=pixels).pooler_output
    require_near("image", given.weights, Fidelity.of(seer.eval()(pixels), found), given.min_cosine)
    spec = TokenizerSpec(**text.tokenizer)
    texts = [*PROBES, *given.captions[:256]]
    expected = reader.eval()(tokenize(spec, texts).pad(spec.pad_id, spec.context_length))
    fed = tokenizer(texts, padding=True, truncation=True, max_length=spec.context_length, return_tensors="pt")
    found = loaded.get_text_features(**fed).pooler_output
    require_near("text", given.weights, Fidelity.of(expected, found), given.min_cosine)
