"""A tower on its own: what describes it, builds it, saves it and loads it.

A `TowerSpec` is plain data (JSON), so that it can lie in a store's manifest, beside a student's weights, or in a
checkpoint. Towers are open_clip's own classes, which is why they fit into an open_clip folder again (`exports`).

Shapes: B batch, L tokens, D embedding, S image side.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from open_clip.model import _build_text_tower, _build_vision_tower
from open_clip.transformer import TextTransformer
from torch import nn

from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.system.files import read_json, write_bytes, write_json
from clip_distill.system.registry import require_trust, resolve
from clip_distill.towers.attention import exact_attention
from clip_distill.towers.text import CutTextTransformer
from clip_distill.towers.thin import make_thin

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, Tower] = ("image", "text")
THIN = "embedding_rank"  # in a text tower's `cfg`, beside open_clip's keys: of a token table in two factors
SPEC_FILE, WEIGHTS_FILE = "tower.json", "tower.safetensors"


@dataclass(frozen=True)
class TowerSpec:
    """Everything that builds one tower and feeds it.

    Args:
        tower: "image" or "text".
        embed_dim: D, the width of the embedding.
        cfg: open_clip's `vision_cfg` or `text_cfg` (with `embedding_rank`, of a text tower with a thin table); keyword
            arguments of `builder` where there is one (`causal: true` among them lets a text tower's padding be cut).
        quick_gelu: OpenAI's approximate GELU. open_clip has one switch for both towers: a student takes its teacher's.
        preprocess: open_clip's `preprocess_cfg` (size, mean, std, interpolation, …) of an image tower, and `exif: true`
            where photos are turned first.
        tokenizer: What turns captions into a text tower's tokens; see `clip_distill.tokens.encode.TokenizerSpec`.
        builder: `module:Attr` of a function `(embed_dim, **cfg) -> nn.Module`, for towers that are not open_clip's.
        teacher: Name, `weights_sha256` and configs of the teacher whose embedding space this is; empty for none.
    """

    tower: Tower
    embed_dim: int
    cfg: dict[str, Any]
    quick_gelu: bool = False
    preprocess: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    builder: str | None = None
    teacher: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """A new tower with random weights: images [B, 3, S, S] or tokens [B, L] → embeddings [B, D], not normalised."""
        if self.builder is not None:
            module: nn.Module = resolve(f"{self.tower} tower", {}, self.builder)(self.embed_dim, **self.cfg)
            return module
        if self.tower == "image":
            return exact_attention(_build_vision_tower(self.embed_dim, dict(self.cfg), self.quick_gelu))
        cfg = {key: value for key, value in self.cfg.items() if key != THIN}
        text = cut_padding(_build_text_tower(self.embed_dim, cfg, self.quick_gelu))
        return make_thin(text, self.cfg[THIN]) if THIN in self.cfg else text

    @property
    def causal(self) -> bool:
        """Whether a caption's embedding ignores what comes after its end, so that padding may be cut."""
        if self.builder is not None:
            return bool(self.cfg.get("causal", False))
        if any(self.cfg.get(key) for key in ("hf_model_name", "no_causal_mask", "embed_cls")):
            return False
        pool = self.cfg.get("pool_type", "argmax")  # of token ids, so the padding's must not be the greatest
        return bool(pool == "eos" or (pool == "argmax" and self.tokenizer.get("pad_id", 0) == 0))


def cut_padding(tower: nn.Module) -> nn.Module:
    """Let a causal open_clip text tower take batches cut to their longest caption; others are returned as they are."""
    if type(tower) is TextTransformer and tower.attn_mask is not None:
        tower.__class__ = CutTextTransformer  # same parameters, state dict and embeddings
    return tower


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def save_tower(folder: Path, spec: TowerSpec, module: nn.Module) -> None:
    """Write `tower.safetensors`, then `tower.json`: a folder with the JSON is complete."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, safetensors.torch.save(state))
    write_json(folder / SPEC_FILE, dataclasses.asdict(spec))


def load_tower(folder: Path | str) -> tuple[TowerSpec, nn.Module]:
    """Read what `save_tower` wrote, in eval mode. A run's folder is taken for the student in it.

    Raises:
        FileNotFoundError: There is no finished student in the folder.
    """
    folder = Path(folder)
    if not (folder / SPEC_FILE).is_file() and (folder / "student" / SPEC_FILE).is_file():
        folder = folder / "student"
    if not (folder / SPEC_FILE).is_file():
        raise NotFound(
            f"{folder}: expected a student ({SPEC_FILE} and {WEIGHTS_FILE}, written when `clip-distill fit` ends), "
            "found " + ("none of them" if folder.is_dir() else "no such folder")
        )
    described = read_json(folder / SPEC_FILE)
    require_trust(str(folder / SPEC_FILE), described)
    spec = TowerSpec(**described)
    module = spec.build()
    module.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
    return spec, module.eval()


def pick_device(device: str) -> torch.device:
    """`auto` is this process's GPU (LOCAL_RANK or SLURM_LOCALID says which), else MPS, else the CPU.

    Raises:
        InvalidValue: There is no such device.
    """
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise InvalidValue(f"device: expected auto, cpu, cuda, cuda:1, mps, …, found {device!r}") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return torch.device(accelerator.type, local_rank % torch.accelerator.device_count())
