"""A tower as a Core ML program, for iOS 16 and macOS 13 or later. It is written anywhere, and runs on Apple's alone."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import coremltools
import numpy as np
import torch
from coremltools.optimize import coreml

from clip_distill.exports.target import Graph
from clip_distill.exports.writers.traced import traced


def write(path: Path, graph: Graph) -> None:
    """Write a tower: computed in float16, or in float32; int8 is of weights, one scale per channel. uint8 is a picture.

    Raises:
        InvalidValue: torch can't export it.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    example = graph.example[:1]
    name, shape = graph.names[0], example.shape
    if example.dtype == torch.uint8:  # a picture as the system has it; its numbers come as floats
        source = coremltools.ImageType(name=name, shape=shape, color_layout=coremltools.colorlayout.RGB)
        graph = dataclasses.replace(graph, example=example.float())
    else:
        kind = np.int32 if example.dtype == torch.int32 else np.float32
        source = coremltools.TensorType(name=name, shape=shape, dtype=kind)
    made = coremltools.convert(
        traced(graph).run_decompositions({}),
        inputs=[source],
        outputs=[coremltools.TensorType(name=graph.names[1], dtype=np.float32)],
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=getattr(coremltools.precision, "FLOAT32" if graph.weights == "fp32" else "FLOAT16"),
    )
    if graph.weights == "int8":
        op = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512)
        made = coreml.linear_quantize_weights(made, coreml.OptimizationConfig(global_config=op))
    made.save(str(path))
