"""A loss against a queue of the teacher's embeddings of earlier batches.

Shapes: B batch of this process, G batch of all, Q queue, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clip_distill.losses.similarity import gather, kl, scaled_cosines, temperatures
from clip_distill.system.errors import InvalidValue


class QueueKL(nn.Module):
    """KL between teacher's and student's similarities with the teacher's embeddings of this and earlier batches.

    mean_b KL(softmax_j(t_b·q_j / τ_t) ‖ softmax_j(s_b·q_j / τ)) over q = the teacher's embeddings of the batch of all
    processes, then of the last `size` samples before it; all normalised. The distillation of lightly-train (τ_t = τ =
    0.07), which counts the batch among the queue's, and SEED (Fang et al., 2021, arXiv:2101.04731, eq. 5), which takes
    of the batch the sample alone (65,536 others, τ 0.2 and τ_t 0.0001 in its code). With `size` 0, the batch alone: the
    pseudo-VL score distillation of DIME-FM (Sun et al., 2023, arXiv:2303.18232; τ 0.03 in its code). Zero at identity
    where τ_t = τ. Until the queue has filled, q is shorter.

    The queue is the loss's state, so a run's checkpoints hold it beside the student, and a resumed run goes on exactly;
    the saved student does not. It moves on where the module is in training mode.

    Args:
        size: Q, samples before this batch; 0 or more.
        temperature: τ, the student's.
        teacher_temperature: τ_t; by default τ.
    """

    queue: Tensor

    def __init__(self, size: int = 4096, temperature: float = 0.07, teacher_temperature: float | None = None) -> None:
        super().__init__()
        if size < 0:
            raise InvalidValue(f"queue_kl: expected size >= 0, found {size}")
        self.size = size
        self.temperature, self.teacher_temperature = temperatures("queue_kl", temperature, teacher_temperature)
        # saved as extra state instead, since a buffer that grows would not load into a fresh one
        self.register_buffer("queue", torch.empty(0), persistent=False)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        others = torch.cat([gather(target), self.queue.to(target)]).detach()  # [G + Q, D], newest first
        if self.training:
            self.queue = others[: self.size]
        theirs = scaled_cosines(target, others, self.teacher_temperature)  # [B, G + Q]
        return kl(theirs, scaled_cosines(student, others, self.temperature))

    def get_extra_state(self) -> Tensor:
        return self.queue

    def set_extra_state(self, state: Tensor) -> None:
        self.queue = state.to(self.queue.device)
