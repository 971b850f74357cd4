"""A tower in ONNX Runtime; torch is not imported here.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime

from clip_distill.benchmarking.job import Array, Job, Started, warm_up
from clip_distill.system.allocator import most_resident_bytes
from clip_distill.system.errors import InvalidValue


def start(job: Job) -> Started:
    """Load an ONNX file, for turns to come.

    Raises:
        ValueError: CUDA is asked for, and this onnxruntime can't use it.
    """
    idle = most_resident_bytes()
    began = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(job.spin)))  # by itself, they do
    session = onnxruntime.InferenceSession(job.model, options, providers=providers(job.device))
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name

    def encode(inputs: Array) -> Array:
        embeddings: Array = session.run([target], {source: inputs})[0]
        return embeddings

    start_seconds, embeddings = warm_up(job, np.ascontiguousarray, encode, began)
    return Started(start_seconds, idle, most_resident_bytes() - idle, embeddings, session.get_providers()[0])


def providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    """ONNX Runtime's own name of a device."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise InvalidValue("onnxruntime has no CUDA here: pip install onnxruntime-gpu in its place")
        return [("CUDAExecutionProvider", {"device_id": number or "0"})]
    return ["CPUExecutionProvider"]
