"""CLIP, SigLIP and their like from Hugging Face transformers as teachers, with their own preprocessing and tokenizer.

Shapes: B batch, L tokens, D embedding, S image side, C context length.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from clip_distill.system.errors import InvalidValue
from clip_distill.system.hub import hub_or_cache
from clip_distill.teachers.open_clip import hash_weights, jsonable
from clip_distill.tokens import hugging_face as hf_tokens
from clip_distill.tokens.spec import PLAIN, TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec

# Their text attends to what came before only, so padding behind a caption's end can't change its embedding
CAUSAL = ("clip", "clipseg", "metaclip_2")
PARTS: dict[Tower, tuple[str, str]] = {
    "image": ("vision_model", "visual_projection"),
    "text": ("text_model", "text_projection"),
}
auto: Any = transformers  # its loaders are only partly typed
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, open_clip's names


class FeatureTower(nn.Module):
    """One tower of a transformers model: images [B, 3, S, S] or tokens [B, L] → embeddings [B, D], not normalised.

    Args:
        model: Anything with `get_image_features` and `get_text_features`; the other tower's parts are deleted from it.
        tower: "image" or "text".
        mask_id: Padding token that attention must not see; None where the model was trained to see it, or never does.
        mask_is_end: It also ends a text, and the first one is seen.
    """

    def __init__(self, model: Any, tower: Tower, mask_id: int | None = None, mask_is_end: bool = False) -> None:
        super().__init__()
        for name in PARTS["text" if tower == "image" else "image"]:
            if hasattr(model, name):
                delattr(model, name)
        self.model, self.tower, self.mask_id, self.mask_is_end = model, tower, mask_id, mask_is_end

    def forward(self, inputs: Tensor) -> Tensor:
        if self.tower == "image":
            features = self.model.get_image_features(pixel_values=inputs)
        else:
            features = self.model.get_text_features(input_ids=inputs, attention_mask=self.mask(inputs))
        # transformers 4 returned the tensor itself
        embeddings: Tensor = features if isinstance(features, Tensor) else features.pooler_output
        return embeddings

    def mask(self, tokens: Tensor) -> Tensor | None:
        """int64 [B, L], 1 where attention may look."""
        if self.mask_id is None:
            return None
        seen = tokens.ne(self.mask_id)
        if self.mask_is_end:
            seen = seen | (tokens.eq(self.mask_id).cumsum(1) == 1)
        return seen.long()


def build(embed_dim: int, tower: Tower, config: dict[str, Any], causal: bool, mask: dict[str, Any]) -> nn.Module:
    """A `FeatureTower` with random weights, from what `load` put into its spec; D follows from the config."""
    model = auto.AutoModel.from_config(auto.AutoConfig.for_model(**config))
    return FeatureTower(model, tower, **mask)


def load(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module]:
    """Load one tower of `transformers:PATH_OR_NAME`, in float32.

    Raises:
        ValueError: It can't be fetched, lacks weights, has no image and text features, or wants pixels that
            open_clip's preprocessing can't make.
    """
    source = name.removeprefix("transformers:")
    folder = Path(source)
    source = str(folder.resolve()) if folder.is_dir() else source
    try:
        with contextlib.nullcontext() if folder.is_dir() else hub_or_cache():
            model, info = auto.AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
            processor = auto.AutoImageProcessor.from_pretrained(source)
            tokenizer = auto.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"teacher {name!r}: transformers could not load it: {error}\n"
            "Expected a folder written by save_pretrained (model, image processor and tokenizer) or a name on the hub."
        ) from error
    check(name, model, info)
    preprocess = preprocess_cfg(name, processor)
    context_length = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    tokens = hf_tokens.describe(tokenizer, PLAIN + source, context_length, model.config.text_config.vocab_size)
    causal = model.config.model_type in CAUSAL
    masked = not causal and "attention_mask" in tokenizer.model_input_names
    mask: dict[str, Any] = {"mask_id": tokens.pad_id, "mask_is_end": tokens.pad_is_end} if masked else {}
    facts: dict[str, Any] = {"name": name, "weights_sha256": hash_weights(model), "logit_scale": logit_scale(model)}
    config = jsonable(model.config.to_dict())
    module = FeatureTower(model.eval(), tower, **mask)
    embed_dim = measure(module, preprocess["size"], context_length)
    teacher = facts | {
        "embed_dim": embed_dim,
        "model_cfg": model_cfg(config, embed_dim, preprocess["size"], tokens),
        "preprocess": preprocess,
        "tokenizer": tokens.as_dict(),
    }
    spec = TowerSpec(
        tower=tower,
        embed_dim=embed_dim,
        cfg={"tower": tower, "config": config, "causal": causal and tower == "text", "mask": mask},
        quick_gelu=teacher["model_cfg"]["quick_gelu"],
        preprocess=preprocess if tower == "image" else {},
        tokenizer=teacher["tokenizer"] if tower == "text" else {},
        builder=f"{__name__}:build",
        teacher=teacher,
    )
    return spec, module


def check(name: str, model: nn.Module, info: dict[str, Any]) -> None:
    """Refuse a model that isn't CLIP-like, and one whose weights are not all in its files: those would be random."""
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        found = type(model).__name__
        raise InvalidValue(
            f"teacher {name!r}: expected a model with image and text features (CLIP, SigLIP, …), found {found}"
        )
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise InvalidValue(f"teacher {name!r}: expected weights for all of the model, found none that fit {absent[:5]}")


def preprocess_cfg(name: str, processor: Any) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of a transformers image processor.

    The pixels are those of its PIL backend, bit for bit, but for one thing: half an odd margin is rounded to even by
    torchvision, which OpenAI's CLIP and open_clip crop with, and down by transformers. Where a margin is 3 modulo 4,
    the crop lies one pixel further. The torchvision backend resizes a little differently: by 1 or 2 of 255 levels.

    Raises:
        ValueError: open_clip can't express what it does.
    """
    size: dict[str, Any] = {key: value for key, value in dict(processor.size or {}).items() if value is not None}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else size
    side = int(crop.get("height") or 0)
    squash = {"height": side, "width": side}
    standard = (
        processor.do_resize and processor.do_rescale and processor.do_normalize and side > 0
        and crop.get("width") == side and size in ({"shortest_edge": side}, squash)
        and abs(processor.rescale_factor - 1 / 255) < 1e-9 and processor.resample in INTERPOLATIONS
    )  # fmt: skip
    if not standard:
        raise InvalidValue(
            f"teacher {name!r}: expected an image processor that resizes to a square (bilinear or bicubic), crops the "
            f"centre, divides by 255 and normalises; found {type(processor).__name__} with {processor.to_dict()}"
        )
    return {
        "size": side,
        "mode": "RGB",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": INTERPOLATIONS[processor.resample],
        "resize_mode": "squash" if size == squash else "shortest",
        "fill_color": 0,
    }


def model_cfg(config: dict[str, Any], embed_dim: int, size: int, tokens: TokenizerSpec) -> dict[str, Any]:
    """What a student takes over from its teacher, in open_clip's words; the whole config is in the spec's `cfg`."""
    return {
        "embed_dim": embed_dim,
        "quick_gelu": config["vision_config"].get("hidden_act") == "quick_gelu",
        "vision_cfg": {"image_size": size},
        "text_cfg": {"context_length": tokens.context_length, "vocab_size": tokens.vocab_size},
        "transformers": config["model_type"],
    }


def logit_scale(model: nn.Module) -> float:
    """The factor on cosine similarities, 1 for a model without."""
    scale = getattr(model, "logit_scale", None)
    return float(scale.detach().exp()) if isinstance(scale, Tensor) else 1.0


@torch.inference_mode()
def measure(module: FeatureTower, size: int, context_length: int) -> int:
    """D, by trying: configs name it in too many ways."""
    image = module.tower == "image"
    inputs = torch.zeros(1, 3, size, size) if image else torch.zeros(1, context_length, dtype=torch.long)
    return int(module(inputs).shape[-1])
