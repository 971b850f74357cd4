"""OpenVINO, on the CPU."""

from __future__ import annotations

import numpy as np
import openvino

from clip_distill.runtimes import Opened
from clip_distill.runtimes.alone import require_cpu
from clip_distill.system.signals import same_signal_stack


def open_file(path: str, device: str = "auto", weights: str = "fp32") -> Opened:
    """Load a file. Some CPUs would compute in bfloat16 by themselves, which costs a cosine of 0.0002."""
    require_cpu(device)
    with same_signal_stack():
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return Opened(lambda inputs: np.array(model(inputs)[0], np.float32), "cpu")
