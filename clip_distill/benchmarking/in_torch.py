"""A tower in torch, eager or compiled.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import logging
import time
import warnings

import torch
from torch import Tensor

from clip_distill.benchmarking.job import Array, Job, Started, warm_up
from clip_distill.system.allocator import most_resident_bytes
from clip_distill.towers.spec import load_tower


def start(job: Job) -> Started:
    """Load a tower's folder, for turns to come. On CUDA inputs come from the host and embeddings go back each time."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.zeros(1, device=device)  # CUDA's own start is not the tower's
    idle = most_resident_bytes()
    began = time.perf_counter()
    module = load_tower(job.model)[1].to(device)
    if job.runtime == "compile":
        warnings.filterwarnings("ignore", module=r"torch\.")  # about torch's own code, each time it compiles
        logging.getLogger("torch").setLevel(logging.ERROR)
        module.compile(dynamic=False)  # a program's shapes are few, and a fixed one is faster

    def prepare(inputs: Array) -> Tensor:
        tensor = torch.from_numpy(inputs)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def encode(inputs: Tensor) -> Array:
        with torch.inference_mode():
            embeddings: Array = module(inputs.to(device)).float().cpu().numpy()
        return embeddings

    start_seconds, embeddings = warm_up(job, prepare, encode, began)
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else most_resident_bytes() - idle
    return Started(start_seconds, idle, peak, embeddings, job.device)
