"""ExecuTorch, with XNNPACK."""

from __future__ import annotations

import torch
from executorch.runtime import Runtime

from clip_distill.runtimes import Opened
from clip_distill.runtimes.alone import one_by_one


def open_file(path: str, device: str = "auto", weights: str = "fp32") -> Opened:
    """Load a file; its inputs are torch's tensors."""
    method = Runtime.get().load_program(path).load_method("forward")
    return one_by_one(lambda row: method.execute([torch.from_numpy(row.copy())])[0].float().numpy(), device)
