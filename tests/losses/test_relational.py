"""Losses between similarities; and that several processes compute what one would."""

from __future__ import annotations

import os
import subprocess
import sys
from math import e, log
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from clip_distill.losses.relational import GramKL

ROWS, WIDTH = 6, 5


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, target = torch.randn(2, ROWS, WIDTH, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), target


def test_value_by_hand() -> None:
    """Teacher: two samples agree, the third is at right angles. Student: all alike, so uniform."""
    target = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    student = torch.ones(3, 2)
    p = torch.tensor([e / (1 + e), 1 / (1 + e)])  # of the agreeing one and of the other
    entropy = float(-(p * p.log()).sum())
    expected = 2 / 3 * (log(2) - entropy)  # the third sample's two similarities are equal, as the student says
    assert float(GramKL(1.0)(student, target)) == pytest.approx(expected, abs=1e-6)


def test_a_rotated_and_scaled_teacher_is_a_perfect_student() -> None:
    student, target = samples()
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    loss = GramKL()
    assert float(loss(3 * target @ rotation, target)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(loss(student @ rotation, target), loss(student, target))


def test_a_batch_of_one_has_nothing_to_learn_and_breaks_nothing() -> None:
    student = torch.randn(1, WIDTH, requires_grad=True)
    loss = GramKL()(student, torch.randn(1, WIDTH))
    (gradient,) = torch.autograd.grad(loss, student)
    assert (float(loss.detach()), float(gradient.abs().max())) == (0.0, 0.0)


def test_mixed_precision_does_not_touch_the_similarities() -> None:
    student, target = (rows.float() for rows in samples())
    exact = GramKL()(student, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GramKL()(student, target), exact)


def test_two_processes_give_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    student, target = samples()
    loss = GramKL()(student, target)
    loss.backward()
    torch.testing.assert_close(torch.stack([share["loss"] for share in shares]).mean(), loss.detach())
    # DDP takes the mean of the processes' gradients; each row's arrives at the process that has the row
    torch.testing.assert_close(torch.cat([share["gradient"] for share in shares]) / 2, student.grad)


def one_process(rank: int, folder: Path) -> None:
    """Its half of the rows."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    student, target = (rows.detach().chunk(2)[rank] for rows in samples())
    loss = GramKL()(student.requires_grad_(), target)
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": student.grad}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
