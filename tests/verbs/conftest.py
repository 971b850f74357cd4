"""What the tests of several commands run alike."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from clip_distill.cli import main as cli


def take_part(rank: int, port: int, arguments: Sequence[str], log: Path) -> None:
    """Be one of two processes of a run, as torchrun starts them."""
    multiprocessing.set_start_method(None, force=True)  # not the server's: the workers would import everything anew
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    import torch

    torch.set_num_threads(1)
    with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        cli.main(list(arguments))


@pytest.fixture
def run_in_two(
    tmp_path_factory: pytest.TempPathFactory, forkserver: ForkServerContext
) -> Callable[[Sequence[str]], str]:
    """Runs `clip-distill fit ARGUMENTS` in two processes by DDP, which must succeed; returns what both printed."""
    context = forkserver

    def run(arguments: Sequence[str]) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = tmp_path_factory.mktemp("processes")
        logs = [folder / f"{rank}.log" for rank in range(2)]
        options = [*arguments, "--trainer.strategy", "ddp", "--trainer.devices", "2"]
        running = [context.Process(target=take_part, args=(rank, port, options, log)) for rank, log in enumerate(logs)]
        for process in running:
            process.start()
        for process in running:
            process.join(timeout=120)
        printed = "".join(log.read_text(encoding="utf-8") for log in logs if log.is_file())
        assert [process.exitcode for process in running] == [0, 0], printed[-3000:]
        return printed

    return run
