"""Frozen towers to learn from: a table of loaders, and `load_teacher`, which picks one by the teacher's name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from clip_distill.system.registry import resolve
from clip_distill.towers.spec import Tower, TowerSpec

Loader = Callable[[str, Tower], tuple[TowerSpec, nn.Module]]

TEACHERS = {
    "open_clip": "clip_distill.teachers.open_clip:load",
    "transformers": "clip_distill.teachers.transformers:load",
    "reduced": "clip_distill.teachers.reduced:load",
    "upright": "clip_distill.teachers.upright:load",
}


def load_teacher(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module]:
    """Load one tower of a teacher: on the CPU, in eval mode, without gradients; the other tower is dropped.

    Args:
        name: `ViT-B-32/openai` (an open_clip model and its weights), `ViT-B/32` (OpenAI's own spelling),
            `local-dir:PATH` or `hf-hub:ORG/REPO` (open_clip folders), `transformers:PATH_OR_NAME` (Hugging Face CLIP
            or SigLIP), `reduced:STORE` (what `store reduce` wrote), `upright:NAME` (any of them, photos turned first),
            or `module:Attr` of your own `(name, tower) -> (TowerSpec, nn.Module)`.
        tower: "image" or "text".

    Returns:
        A spec whose `teacher` says what made it (name, `weights_sha256`, `embed_dim`, `logit_scale`, `model_cfg`,
        `preprocess`, `tokenizer`), and the module: images [B, 3, S, S] or tokens [B, L] → embeddings [B, D].
    """
    prefix = name.split(":", 1)[0]
    if prefix in ("transformers", "reduced", "upright"):
        kind = prefix
    elif ":" not in name or prefix in ("local-dir", "hf-hub"):
        kind = "open_clip"
    else:
        kind = name
    load: Loader = resolve("teacher", TEACHERS, kind)
    spec, module = load(name, tower)
    return spec, module.eval().requires_grad_(False)
