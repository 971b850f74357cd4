"""`timm_cut` students as an architecture of timm's, so that open_clip builds them: `import clip_distill` adds it.

The name says all: `clip_distill_cut.MODEL-DEPTHS-HIDDEN-HEAD`, for instance
`clip_distill_cut.tf_efficientnet_lite0-1_2_2_3_3_2-512-mlp`; what follows the point is to timm a tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from clip_distill.system.errors import InvalidValue
from clip_distill.system.registry import resolve

NAME = "clip_distill_cut"
BUILDER = "clip_distill.students.cut:build"


def name_of(cfg: Mapping[str, Any]) -> str:
    """timm's name of a student that BUILDER builds."""
    depths = "_".join(map(str, cfg["depths"]))
    return f"{NAME}.{cfg['model']}-{depths}-{cfg['hidden']}-{cfg['head']}"


def add(models: ModuleType) -> None:
    """Register the architecture, once `timm.models` is imported."""
    from timm.models import register_model

    register_model(clip_distill_cut)


def clip_distill_cut(pretrained: bool = False, pretrained_cfg: Any = None, num_classes: int = 0, **options: Any) -> Any:
    """timm's entry point: images [B, 3, S, S] → [B, num_classes].

    Raises:
        ValueError: The tag is missing, or names no such student.
    """
    try:
        model, depths, hidden, head = str(pretrained_cfg).rsplit("-", 3)
        numbers = [int(depth) for depth in depths.split("_")]
        return resolve("image tower", {}, BUILDER)(num_classes, model, numbers, int(hidden), head)
    except ValueError as error:
        raise InvalidValue(
            f"{NAME}: expected {NAME}.MODEL-DEPTHS-HIDDEN-HEAD (…lite0-1_2_2_3-512-mlp), found the tag "
            f"{pretrained_cfg!r}: {error}"
        ) from error
