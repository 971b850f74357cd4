"""A tower as torch's exported program of one sample, for runtimes that start from it."""

from __future__ import annotations

from typing import Any

import torch

from clip_distill.exports.target import Graph
from clip_distill.system.errors import InvalidValue


def traced(graph: Graph) -> Any:
    """torch.export's program of one sample.

    Raises:
        InvalidValue: torch can't export it.
    """
    try:
        with torch.no_grad():
            return torch.export.export(graph.module, (graph.example[:1].clone(),))
    except RuntimeError as error:
        raise InvalidValue(f"torch can't export this tower: {str(error).strip().splitlines()[0]}") from error
