"""ONNX Runtime, for .onnx and .ort files."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime

from clip_distill.runtimes import Opened
from clip_distill.system.errors import InvalidValue


def open_file(path: str, device: str = "auto", weights: str = "fp32", threads: int = 0) -> Opened:
    """Load a file. Half-precision graphs crash at onnxruntime's last level of optimisation, so they go without it.

    Args:
        path: The file.
        device: auto, cpu, cuda.
        weights: Of the file.
        threads: Of a call; 0 leaves it to onnxruntime, which takes one for each core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if weights == "fp16":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(path, options, providers=providers(device))
    source = session.get_inputs()[0].name
    on_gpu = session.get_providers()[0].startswith("CUDA")
    return Opened(
        lambda inputs: np.asarray(session.run(None, {source: inputs})[0], np.float32),
        "cuda" if on_gpu else "cpu",
        None if on_gpu else partial(open_file, path, "cpu", weights, threads=1),
    )


def providers(device: str) -> list[str]:
    """Where onnxruntime runs.

    Raises:
        InvalidValue: It can't run there.
    """
    there = onnxruntime.get_available_providers()
    kind = device.partition(":")[0]
    if kind == "cuda" and "CUDAExecutionProvider" not in there:
        raise InvalidValue(f"device {device!r}: expected an onnxruntime with CUDA (onnxruntime-gpu), found {there}")
    if kind not in ("auto", "cpu", "cuda"):
        raise InvalidValue(f"device {device!r}: expected auto, cpu or cuda for ONNX files")
    on_gpu = kind in ("auto", "cuda") and "CUDAExecutionProvider" in there
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if on_gpu else ["CPUExecutionProvider"]
