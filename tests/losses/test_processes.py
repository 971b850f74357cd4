"""Losses under two processes: together they compute what one would on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip_distill.losses import LOSSES, WeightedSum, make_loss
from clip_distill.losses.both import BETWEEN

STEPS, ROWS, WIDTH = 3, 6, 5


def samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Students, targets and pairs of three steps [3, 6, 5] each (one process has more pairs), and a bank."""
    generator = torch.Generator().manual_seed(3)
    student, target, pair = torch.randn(3, STEPS, ROWS, WIDTH, dtype=torch.float64, generator=generator)
    pair[:, [1, 2, 4]] = 0
    return student, target, pair, torch.randn(7, WIDTH, dtype=torch.float64, generator=generator)


def run(student: Tensor, target: Tensor, pair: Tensor, bank: Tensor) -> dict[str, dict[str, Tensor]]:
    """Each loss's value at the last step, and its gradient there; the queue remembers the steps before."""
    found = {}
    for name in LOSSES:
        options: dict[str, dict[str, float]] = {"queue_kl": {"size": 8}} if name == "queue_kl" else {}
        objective: nn.Module = WeightedSum([name], [1], [1], options, {"bank": bank})
        for rows, aims, partners in zip(student, target, pair, strict=True):
            leaf = rows.clone().requires_grad_()
            loss, _ = objective(leaf, aims, partners)
        (gradient,) = torch.autograd.grad(loss, leaf)
        found[name] = {"loss": loss.detach(), "gradient": gradient}
    return found | run_between(student[-1], target[-1])


def run_between(image: Tensor, text: Tensor) -> dict[str, dict[str, Tensor]]:
    """The same of the losses between two students [6, D]; of the pairs, some in both processes have the same photo."""
    found = {}
    pairs = torch.stack([image[:, 0] > 0, 1e6 * text[:, 0]], dim=1).long()
    for name in BETWEEN:
        leaves = image.clone().requires_grad_(), text.clone().requires_grad_()
        loss = make_loss(name, {"temperature": 0.5}, BETWEEN)(*leaves, image.flip(1), text.flip(1), pairs)
        gradient = torch.cat(torch.autograd.grad(loss, leaves), dim=1)
        found[name] = {"loss": loss.detach(), "gradient": gradient}
    return found


def test_two_processes_give_the_losses_and_the_gradients_of_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in run(*samples()).items():
        losses, gradients = ([share[name][key] for share in shares] for key in ("loss", "gradient"))
        torch.testing.assert_close(torch.stack(losses).mean(), expected["loss"], msg=lambda m, n=name: f"{n}: {m}")
        # DDP takes the mean of the processes' gradients; each row's arrives at the process that has the row
        torch.testing.assert_close(torch.cat(gradients) / 2, expected["gradient"], msg=lambda m, n=name: f"{n}: {m}")


def one_process(rank: int, folder: Path) -> None:
    """Its half of each step's rows."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    *batches, bank = samples()
    found = run(*(each.chunk(2, dim=1)[rank] for each in batches), bank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
