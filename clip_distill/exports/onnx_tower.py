"""An exported ONNX file in a tower's place, so that what is shipped can be measured like what was trained.

Shapes: B images or captions, L tokens, S image side, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_distill.exports import ONNX_FILE
from clip_distill.exports.onnx_file import open_session
from clip_distill.system.files import read_json
from clip_distill.towers.spec import Tower, TowerSpec

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxTower(nn.Module):
    """A file that `export_tower` wrote, called like the tower it was made from; it runs on the CPU.

    Args:
        embed_dim: D.
        path: The file.
        causal: Whether captions may be cut; see `TowerSpec.causal`.
    """

    def __init__(self, embed_dim: int, path: str, causal: bool = False) -> None:
        super().__init__()
        self.session = open_session(path)
        (source,), (target,) = self.session.get_inputs(), self.session.get_outputs()
        self.source, self.target, self.dtype = source.name, target.name, DTYPES[source.type]

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] or tokens [B, L] → [B, D], not normalised, on the CPU."""
        return torch.from_numpy(self.session.run([self.target], {self.source: self._fed(inputs)})[0])

    def _fed(self, inputs: Tensor) -> NDArray[Any]:
        """Of the file's type; a file of uint8 pixels takes what its `preprocess` leaves between 0 and 1."""
        rows = inputs.numpy(force=True)
        if self.dtype is np.uint8:
            rows = np.rint(rows * 255).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(rows.astype(self.dtype, copy=False))


def load_onnx_tower(folder: Path, tower: Tower) -> tuple[TowerSpec, nn.Module, int]:
    """One tower of a folder that `clip-distill export --to onnx` or another target of ONNX files wrote.

    Returns:
        Spec, module, and how many parameters the tower had in torch.
    """
    info = read_json(folder / ONNX_FILE)
    mine = info[tower]
    spec = TowerSpec(
        tower,
        mine["output"]["shape"][1],
        {"path": str(folder / mine["file"]), "causal": mine["input"]["shape"][1] == "length"},
        preprocess=mine.get("preprocess", {}),
        tokenizer=mine.get("tokenizer", {}),
        builder="clip_distill.exports.onnx_tower:OnnxTower",
        teacher=info["teacher"],
    )
    return spec, spec.build(), mine["parameters"]
