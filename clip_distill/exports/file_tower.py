"""An exported file in a tower's place, so that what is shipped can be measured like what was trained.

Shapes: B images or captions, L tokens, S image side, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_distill.exports import TOWERS_FILE
from clip_distill.runtimes import open_file
from clip_distill.system.files import read_json
from clip_distill.towers.spec import Tower, TowerSpec


class FileTower(nn.Module):
    """A file that `export_tower` wrote, called like the tower it was made from; it runs on the CPU.

    Args:
        embed_dim: D.
        path: The file.
        runtime: Of `runtimes.RUNTIMES`.
        dtype: Of its input.
        weights: Of the file.
        layout: Of its pixels.
        causal: Whether captions may be cut; see `TowerSpec.causal`.
    """

    def __init__(
        self,
        embed_dim: int,
        path: str,
        runtime: str,
        dtype: str,
        weights: str = "fp32",
        layout: str = "NCHW",
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.opened = open_file(runtime, path, "cpu", weights)
        self.dtype, self.layout = np.dtype(dtype), layout

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] or tokens [B, L] → [B, D], not normalised, on the CPU."""
        return torch.from_numpy(self.opened.run(self._fed(inputs)))

    def _fed(self, inputs: Tensor) -> NDArray[Any]:
        """Of the file's type; a file of uint8 pixels takes what its `preprocess` leaves between 0 and 1."""
        rows = inputs.numpy(force=True)
        if self.dtype == np.uint8:
            rows = np.rint(rows * 255)
        if self.layout == "NHWC":
            rows = rows.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(rows.astype(self.dtype, copy=False))


def load_file_tower(folder: Path, tower: Tower) -> tuple[TowerSpec, nn.Module, int]:
    """One tower of a folder that `clip-distill export` wrote for a program or a runtime.

    Returns:
        Spec, module, and how many parameters the tower had in torch.
    """
    info = read_json(folder / TOWERS_FILE)
    mine = info[tower]
    source = mine["input"]
    built = {"path": str(folder / mine["file"]), "runtime": info["runtime"], "dtype": source["dtype"]}
    built["weights"] = info["weights"]
    built |= {"layout": source["layout"]} if "layout" in source else {"causal": source["shape"][1] == "length"}
    spec = TowerSpec(
        tower,
        mine["output"]["shape"][1],
        built,
        preprocess=mine.get("preprocess", {}),
        tokenizer=mine.get("tokenizer", {}),
        builder="clip_distill.exports.file_tower:FileTower",
        teacher=info["teacher"],
    )
    return spec, spec.build(), mine["parameters"]
