"""An exported ONNX file in a tower's place, so that what is shipped can be measured like what was trained.

Shapes: B images or captions, L tokens, S image side, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from clip_distill.exports import ONNX_FILE
from clip_distill.system.errors import MissingPackage
from clip_distill.system.files import read_json
from clip_distill.towers.spec import Tower, TowerSpec

try:
    import onnxruntime
except ImportError as error:
    raise MissingPackage("ONNX files need onnxruntime; install it with: pip install 'clip-distill[onnx]'") from error


class OnnxTower(nn.Module):
    """A file that `export_tower` wrote, called like the tower it was made from; it runs on the CPU.

    Args:
        embed_dim: D.
        path: The file.
        causal: Whether captions may be cut; see `TowerSpec.causal`.
    """

    def __init__(self, embed_dim: int, path: str, causal: bool = False) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (source,), (target,) = self.session.get_inputs(), self.session.get_outputs()
        self.source, self.target = source.name, target.name

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] or tokens [B, L] → [B, D], not normalised, on the CPU."""
        return torch.from_numpy(self.session.run([self.target], {self.source: inputs.numpy(force=True)})[0])


def load_onnx_tower(folder: Path, tower: Tower) -> tuple[TowerSpec, nn.Module, int]:
    """One tower of a folder that `clip-distill export --format onnx` or `onnx-int8` wrote.

    Returns:
        Spec, module, and how many parameters the tower had in torch.
    """
    info = read_json(folder / ONNX_FILE)
    mine = info[tower]
    spec = TowerSpec(
        tower,
        info["teacher"]["embed_dim"],
        {"path": str(folder / mine["file"]), "causal": mine["input"]["shape"][1] == "length"},
        preprocess=mine.get("preprocess", {}),
        tokenizer=mine.get("tokenizer", {}),
        builder="clip_distill.exports.onnx_tower:OnnxTower",
        teacher=info["teacher"],
    )
    return spec, spec.build(), mine["parameters"]
