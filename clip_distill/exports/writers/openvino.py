"""A tower as OpenVINO's two files: NAME.xml, the graph, and NAME.bin, the weights."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import openvino

from clip_distill.exports.target import Graph
from clip_distill.exports.writers import onnx


def write(path: Path, graph: Graph) -> None:
    """Write an ONNX file, then what OpenVINO makes of it: of int8, its own eight-bit operations.

    Raises:
        InvalidValue: As for ONNX.
    """
    half = graph.weights == "fp16"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "whole.onnx"
        onnx.write(whole, dataclasses.replace(graph, weights="fp32") if half else graph)
        openvino.save_model(openvino.convert_model(whole), path, compress_to_fp16=half)
