"""A tower in ONNX Runtime's own format, which its small builds for phones read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime

from clip_distill.exports.target import Graph
from clip_distill.exports.writers import onnx


def write(path: Path, graph: Graph) -> None:
    """Write an ONNX file, then what ONNX Runtime makes of it, without what suits only this machine.

    Raises:
        InvalidValue: As for ONNX.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "whole.onnx"
        onnx.write(whole, graph)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(whole), options, providers=["CPUExecutionProvider"])
