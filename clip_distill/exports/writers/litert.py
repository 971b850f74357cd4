"""A tower as a LiteRT (TensorFlow Lite) file."""

from __future__ import annotations

import os
from pathlib import Path

import litert_torch
from ai_edge_quantizer import quantizer, recipe

from clip_distill.exports.target import Graph


def write(path: Path, graph: Graph) -> None:
    """Write a tower; int8 is of weights, with activations scaled as they come."""
    whole = path.with_name(f"{path.stem}.whole.tflite")
    litert_torch.convert(graph.module, (graph.example[:1],)).export(str(whole))
    if graph.weights == "int8":
        made = quantizer.Quantizer(str(whole), recipe.dynamic_wi8_afp32()).quantize()
        made.export_model(str(path), overwrite=True)
        whole.unlink()
    else:
        os.replace(whole, path)
