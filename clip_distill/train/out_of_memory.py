"""A training that ran out of a GPU's memory: which batch would have fitted."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from clip_distill.recipe import Recipe
from clip_distill.system.errors import OutOfMemory
from clip_distill.towers.memory import explained
from clip_distill.train.training import Training

STATES = 2  # numbers that AdamW keeps for each weight, from the first step on


def out_of_memory(error: torch.OutOfMemoryError, module: Training, recipe: Recipe) -> OutOfMemory:
    """What to tell: the step is tried with half of its batch, a quarter, …, until it fits.

    Args:
        error: What ended the training.
        module: That was trained.
        recipe: Of the run.
    """
    trainer, batch = module.trainer, module.batch
    device = trainer.strategy.root_device
    if batch is None:  # it was validating
        size = recipe.loader.val_batch_size
        return OutOfMemory(
            f"{device} ran out of memory while validating with --loader.val_batch_size {size}: expected one that fits. "
            f"Try --loader.val_batch_size {max(1, size // 4)}, which changes no figure"
        )
    module.batch = None
    trained = sum(each.nbytes for each in module.student.parameters() if each.requires_grad)
    grown = any(optimizer.state for optimizer in trainer.optimizers)

    def run(size: int) -> None:
        states = None if grown else torch.empty(STATES * trained, dtype=torch.uint8, device=device)
        part = tree_map(lambda each: each[:size].to(device) if isinstance(each, torch.Tensor) else each, batch)
        with trainer.precision_plugin.forward_context():
            loss, _ = module.loss_of(part, 0)
        loss.backward()
        module.zero_grad(set_to_none=True)
        del states

    module.zero_grad(set_to_none=True)
    module.to(device).train()
    fix = (
        "With --trainer.accumulate_grad_batches N batches make one step as large as before (losses within a batch see "
        "the smaller one). --trainer.precision bf16-mixed and --checkpointing take less memory, too"
    )
    return explained(error, device, "--loader.batch_size", recipe.loader.batch_size, run, fix)
