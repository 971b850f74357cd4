"""The first part of a timm backbone as an image student, with a head of its own.

Shapes: B batch, S image side, C channels at the cut, D embedding.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import TowerSpec

Head = Literal["mlp", "conv"]
PROBE = 64  # side of the images that a backbone is tried on


class CutBackbone(nn.Module):
    """A trunk that ends early, pooling and two layers: images [B, 3, S, S] → [B, D].

    Args:
        trunk: Feature maps [B, C, s, s]; its tensors have timm's names, so a teacher's fit.
        channels: C.
        hidden: Width between the two layers.
        embed_dim: D.
        head: "mlp" pools before its first layer; "conv" after it, a 1×1 convolution with batch norm (EfficientNet's).
    """

    def __init__(self, trunk: nn.Module, channels: int, hidden: int, embed_dim: int, head: Head) -> None:
        super().__init__()
        self.trunk = trunk
        self.done = 0  # of `parts`, how many have run already on what `forward` is given
        pool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
        if head == "mlp":
            first: list[nn.Module] = [pool, nn.Linear(channels, hidden), nn.GELU()]
        else:
            conv = nn.Conv2d(channels, hidden, 1, bias=False)
            first = [conv, BatchNormAct2d(hidden, act_layer=nn.GELU), pool]
        self.head = nn.Sequential(*first, nn.Linear(hidden, embed_dim))

    @property
    def parts(self) -> list[nn.Module]:
        """What the trunk runs one after the other: its stem's modules and each stage."""
        found: list[nn.Module] = []
        for name, child in self.trunk.named_children():
            found += list(child.children()) if name in ("blocks", "stages") else [child]
        return found

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for part in self.parts[self.done :]:
            x = part(x)
        embeddings: Tensor = self.head(x)
        return embeddings


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """A backbone's stages by name: those in its `blocks` or `stages`, or layer1, … (ResNet) or s1, … (RegNet)."""
    for name in ("blocks", "stages"):
        if isinstance(held := getattr(model, name, None), nn.Sequential):
            return {f"{name}.{each}": stage for each, stage in held.named_children()}
    return {name: child for name, child in model.named_children() if re.fullmatch(r"(layer|s)\d+", name)}


def blocks_of(stage: nn.Module) -> nn.Module:
    """What holds a stage's blocks: its own `blocks` where it also has a downsampling, or itself."""
    held = getattr(stage, "blocks", None)
    return held if isinstance(held, nn.Sequential) else stage


def cut(model: nn.Module, depths: Sequence[int]) -> nn.Sequential:
    """The children of a timm backbone up to the stage `depths` ends in, each stage cut to its first blocks.

    Raises:
        ValueError: There are fewer stages, or fewer blocks in one.
    """
    found = stages(model)
    have = [len(list(blocks_of(stage).children())) for stage in found.values()]
    if len(depths) > len(have) or any(not 1 <= kept <= all for kept, all in zip(depths, have, strict=False)):
        raise InvalidValue(
            f"student 'timm_cut': expected depths of up to {len(have)} stages, each from 1 to {have} blocks; found "
            f"{list(depths)}"
        )
    for kept, stage in zip(depths, found.values(), strict=False):
        held = blocks_of(stage)
        for name, _ in list(held.named_children())[kept:]:
            delattr(held, name)
    held_in, _, _ = (last := list(found)[len(depths) - 1]).partition(".")
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        whole = name != held_in or last == held_in
        parts[name] = child if whole else nn.Sequential(OrderedDict(list(child.named_children())[: len(depths)]))
        if name == held_in:
            break
    return nn.Sequential(OrderedDict(parts))


@torch.no_grad()
def stage_depths(name: str) -> list[int]:
    """How many blocks each stage of a timm backbone has.

    Raises:
        ValueError: It is no plain stack: run one after the other, its children don't give the features that it gives.
    """
    model: Any = timm.create_model(name).eval()
    depths = [len(list(blocks_of(stage).children())) for stage in stages(model).values()]
    if depths and hasattr(model, "forward_intermediates"):
        images = torch.rand(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0))
        try:
            own = model.forward_intermediates(images, intermediates_only=True)
            stacked = cut(model, depths)(images)
        except (AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError):
            own, stacked = [], images
        if any(each.shape == stacked.shape and torch.allclose(each, stacked, atol=1e-5) for each in own):
            return depths
    raise InvalidValue(
        f"student 'timm_cut': expected a backbone that is a plain stack of stages (EfficientNet, MobileNet, ResNet, "
        f"RegNet, ConvNeXt, …), found {name!r}. Use student 'timm' for it"
    )


def build(embed_dim: int, model: str, depths: Sequence[int], hidden: int, head: Head) -> CutBackbone:
    """`TowerSpec.builder` of such a student, with random weights."""
    trunk = cut(timm.create_model(model), depths)
    with torch.no_grad():
        channels = trunk.eval()(torch.zeros(1, 3, PROBE, PROBE)).shape[1]
    return CutBackbone(trunk.train(), channels, hidden, embed_dim, head)


def own_backbone(teacher: Mapping[str, Any]) -> str | None:
    """timm's name of the image tower in a teacher's record, or None where it is of another kind."""
    name: str | None = teacher["model_cfg"].get("vision_cfg", {}).get("timm_model_name")
    return name


def timm_cut(
    teacher: Mapping[str, Any],
    model: str | None = None,
    depths: list[int] | None = None,
    hidden: int = 512,
    head: Head = "mlp",
    input_resolution: int | None = None,
) -> tuple[TowerSpec, nn.Module]:
    """The first blocks of a timm backbone, by default the teacher's own, pooled and projected to D by two layers.

    Args:
        teacher: The teacher's record.
        model: timm's name; the teacher's backbone by default.
        depths: How many blocks of each stage to keep, from the first on: [1, 2, 2, 3, 3, 2] ends in the sixth stage.
            By default all of them. What follows the last stage is always left out.
        hidden: Width between the head's two layers.
        head: "mlp" (pool, linear, linear) or "conv" (1×1 convolution with batch norm, pool, linear).
        input_resolution: Image side in pixels; the teacher's by default.

    Raises:
        ValueError: There is no such model, it is no plain stack of stages, or the depths don't fit.
    """
    model = model or own_backbone(teacher)
    if model is None or not timm.is_model(model):
        raise InvalidValue(
            f"student 'timm_cut': expected a timm model (--student.options.model), found {model!r}"
            + ("; the teacher has none of its own" if model is None else "")
        )
    if head not in ("mlp", "conv"):
        raise InvalidValue(f"student 'timm_cut': expected head mlp or conv, found {head!r}")
    own = teacher["preprocess"]["size"]
    side = input_resolution or int(own if isinstance(own, int) else own[0])
    whole = stage_depths(model)
    spec = TowerSpec(
        tower="image",
        embed_dim=teacher["embed_dim"],
        cfg={"model": model, "depths": depths or whole, "hidden": hidden, "head": head},
        preprocess={**teacher["preprocess"], "size": [side, side]},
        builder="clip_distill.students.cut:build",
        teacher=dict(teacher),
    )
    return spec, spec.build()
