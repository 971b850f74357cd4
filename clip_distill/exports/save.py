"""A tower's file: written aside, run by its real runtime, compared with torch, and only then named.

Shapes: B batch.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.exports.target import Graph, Weights
from clip_distill.runtimes import RUNTIMES, Opened, open_file, require_writer
from clip_distill.system.errors import InvalidValue

# Of whole weights the least cosine counts, since no sample has a reason to differ; of rounded ones the mean
LEAST: dict[Weights, float] = {"fp32": 0.9999, "fp16": 0.999}
MEAN: dict[Weights, float] = {"int8": 0.99, "int4": 0.97}


class FellShort(InvalidValue):
    """A file gives other embeddings than the tower it was made from."""


@dataclass(frozen=True)
class Fidelity:
    """Cosines between a file's embeddings and torch's; None where the file can't be run on this machine."""

    mean: float | None
    least: float | None

    @staticmethod
    def of(expected: Tensor, found: Tensor) -> Fidelity:
        """Of two sets of embeddings [B, D] of the same inputs."""
        cosines = F.cosine_similarity(expected.float(), found.float())
        return Fidelity(float(cosines.mean()), float(cosines.min()))


def save_graph(
    path: Path, graph: Graph, runtime: str, probes: Sequence[Tensor], min_cosine: float | None = None
) -> Fidelity:
    """Write a tower, run it, compare it with torch, and only then give the file its name.

    Args:
        path: The file.
        graph: The tower; its module's mode is left as it was.
        runtime: A key of RUNTIMES.
        probes: Inputs [B, …] to compare on.
        min_cosine: What is enough, of the least of whole weights, of the mean of rounded ones; None: LEAST and MEAN.

    Raises:
        FellShort: The runtime gives other embeddings.
        InvalidValue: It can't be written.
        MissingPackage: The runtime is not installed.
    """
    row = RUNTIMES[runtime]
    if graph.weights not in row.weights:
        raise InvalidValue(f"{runtime}: expected --weights {', '.join(row.weights)}, found {graph.weights}")
    write = require_writer(runtime)
    path.parent.mkdir(parents=True, exist_ok=True)
    training = graph.module.training
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        aside = Path(folder) / path.name
        try:
            enough = bound(graph.weights, min_cosine)
            write(aside, dataclasses.replace(graph, module=graph.module.eval(), enough=enough))
            found = (
                compare(open_file(runtime, aside, weights=graph.weights), graph.module, probes)
                if row.reader
                else Fidelity(None, None)
            )
        finally:
            graph.module.train(training)
        require_near(path.name, graph.weights, found, min_cosine)
        for made in Path(folder).iterdir():  # of OpenVINO two
            os.replace(made, path.with_name(made.name))
    return found


def bound(weights: Weights, min_cosine: float | None) -> float:
    return min_cosine if min_cosine is not None else (LEAST | MEAN)[weights]


def require_near(name: str, weights: Weights, found: Fidelity, min_cosine: float | None) -> None:
    """
    Raises:
        FellShort: The cosine that counts is too low.
    """
    kind, value = ("least", found.least) if weights in LEAST else ("mean", found.mean)
    enough = bound(weights, min_cosine)
    if value is not None and not value >= enough:
        raise FellShort(
            f"{name} ({weights}): expected a {kind} cosine ≥ {enough} with the student in torch, found {value:.4f}; "
            "--min_cosine sets another bound"
            + ("; use --weights fp32" if weights in ("fp16", "int8", "int4") else "")
            + ("; --calibrate DATA sets the ranges by your photos" if weights == "int8" else "")
        )


@torch.inference_mode()
def compare(opened: Opened, module: nn.Module, probes: Sequence[Tensor]) -> Fidelity:
    """Cosines between a file's embeddings and a module's."""
    found = torch.cat([torch.from_numpy(opened.run(inputs.numpy())) for inputs in probes])
    return Fidelity.of(torch.cat([module(inputs) for inputs in probes]), found)
