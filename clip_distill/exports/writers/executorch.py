"""A tower as an ExecuTorch program, most of it run by XNNPACK."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from clip_distill.exports.target import Graph
from clip_distill.exports.writers.traced import traced
from clip_distill.system.files import write_bytes


class Half(nn.Module):
    """A tower in float16, whose inputs and outputs stay as they are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, inputs: Tensor) -> Tensor:
        embeddings: Tensor = self.module(inputs.half() if inputs.is_floating_point() else inputs)
        return embeddings.float()


def write(path: Path, graph: Graph) -> None:
    """Write a tower.

    Raises:
        InvalidValue: torch can't export it.
    """
    if graph.weights == "fp16":
        graph = dataclasses.replace(graph, module=Half(graph.module).eval())
    lowered = to_edge_transform_and_lower(traced(graph), partitioner=[XnnpackPartitioner()])
    write_bytes(path, lowered.to_executorch().buffer)
