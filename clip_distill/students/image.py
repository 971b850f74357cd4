"""Image students: open_clip's ViT at any size, or any timm backbone with a projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import TowerSpec


def vit(
    teacher: Mapping[str, Any],
    input_resolution: int = 224,
    patch_size: int = 32,
    width: int = 576,
    layers: int = 6,
    heads: int = 24,
    mlp_ratio: float = 4.0,
    patch_dropout: float = 0.0,
) -> tuple[TowerSpec, nn.Module]:
    """CLIP's vision transformer (Radford et al., 2021); the defaults have 26.0M parameters at D = 512.

    Args:
        teacher: The teacher's record.
        input_resolution: Image side in pixels, a multiple of `patch_size`.
        patch_size: Side of a patch in pixels.
        width: Of the tokens, a multiple of `heads`.
        layers: Transformer blocks.
        heads: Attention heads per block.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        patch_dropout: Share of each image's patches, drawn anew each time, that training leaves out and so does not
            compute (Li et al., 2023, "Scaling Language-Image Pre-training via Masking"): 0.5 nearly halves a step.
    """
    if not 0 <= patch_dropout < 1:
        raise InvalidValue(f"student 'vit': expected patch_dropout 0, or a share below 1, found {patch_dropout}")
    if input_resolution % patch_size or width % heads:
        raise InvalidValue(
            "student 'vit': expected input_resolution a multiple of patch_size and width a multiple of heads, found "
            f"{input_resolution} and {patch_size}, {width} and {heads}"
        )
    cfg: dict[str, Any] = {
        "image_size": input_resolution,
        "patch_size": patch_size,
        "width": width,
        "layers": layers,
        "head_width": width // heads,
        "mlp_ratio": mlp_ratio,
    }
    if patch_dropout:
        cfg["patch_dropout"] = patch_dropout
    return _with_weights(teacher, cfg, input_resolution)


def timm_backbone(
    teacher: Mapping[str, Any],
    model: str,
    input_resolution: int | None = None,
    pool: str = "",
    proj: str = "linear",
    pretrained: bool = False,
) -> tuple[TowerSpec, nn.Module]:
    """A registered timm model, its classifier replaced by a projection to D.

    Where a model has a hidden layer between its pooling and its classifier (MobileNetV3 and V4, GhostNet, VGG, …), that
    layer stays, and the classifier itself becomes the projection: open_clip's projections would not fit behind it.

    Args:
        teacher: The teacher's record.
        model: timm's name, for instance `tf_efficientnet_lite0` (`timm.list_models()`).
        input_resolution: Image side in pixels; the teacher's by default.
        pool: timm's pooling; "" keeps the model's own.
        proj: "linear", or "mlp" for one with a hidden layer of its own.
        pretrained: Start from timm's weights, which are downloaded.
    """
    if not timm.is_model(model):
        close = timm.list_models(f"*{model.split('_')[0]}*")[:10]
        raise InvalidValue(f"student 'timm': timm has no model {model!r}; similar: {', '.join(close) or 'none'}")
    if proj not in ("linear", "mlp"):
        raise InvalidValue(f"student 'timm': expected proj linear or mlp, found {proj!r}")
    own_head = _has_hidden_head(model)
    if own_head and proj == "mlp":
        raise InvalidValue(f"student 'timm': {model!r} has a hidden layer before its classifier; leave proj mlp out")
    side = input_resolution or _side(teacher)
    cfg = {
        "timm_model_name": model,
        "timm_model_pretrained": False,  # weights come from us; a loaded student must not download
        "timm_pool": pool or ("avg" if own_head else ""),
        "timm_proj": "" if own_head else proj,
        "timm_proj_bias": True,
        "image_size": side,
    }
    spec, module = _with_weights(teacher, cfg, side)
    _require_side(model, module, side)
    if pretrained:
        trunk = timm.create_model(model, pretrained=True, num_classes=0)
        module.get_submodule("trunk").load_state_dict(trunk.state_dict(), strict=False)
    return spec, module


def _with_weights(teacher: Mapping[str, Any], cfg: dict[str, Any], side: int) -> tuple[TowerSpec, nn.Module]:
    spec = TowerSpec(
        tower="image",
        embed_dim=teacher["embed_dim"],
        cfg=cfg,
        quick_gelu=teacher["model_cfg"].get("quick_gelu", False),
        preprocess={**teacher["preprocess"], "size": [side, side]},
        teacher=dict(teacher),
    )
    return spec, spec.build()


def _has_hidden_head(model: str) -> bool:
    with torch.device("meta"):  # its shape alone: no memory, no time
        trunk = timm.create_model(model)
    return bool(getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features)


@torch.no_grad()  # not inference_mode: what a model caches here must train
def _require_side(model: str, tower: nn.Module, side: int) -> None:
    """Many timm models take their own image size alone, and only trying tells."""
    try:
        tower.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        _, own, _ = timm.get_pretrained_cfg_value(model, "input_size") or (3, "unknown", "unknown")
        raise InvalidValue(
            f"student 'timm': {model!r} does not take images of {side}×{side}: {error}. Its own size is {own} "
            "(--student.options.input_resolution)"
        ) from error
    tower.train()


def _side(teacher: Mapping[str, Any]) -> int:
    size = teacher["preprocess"]["size"]
    return int(size if isinstance(size, int) else size[0])
