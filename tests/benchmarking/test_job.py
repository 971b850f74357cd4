"""The clock, and the memory that a process of its own reports."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from clip_distill.benchmarking import job
from clip_distill.benchmarking.job import Case, Job, take_turn, warm_up


def test_a_job_runs_once_and_then_at_its_turns() -> None:
    sizes: list[int] = []

    def encode(inputs: job.Array) -> job.Array:
        sizes.append(len(inputs))
        time.sleep(0.01)
        return 2 * inputs

    timed = {Case(size, None): np.full((size, 2), 7.0) for size in (1, 3)}
    compared = [np.ones((4, 2)), np.zeros((2, 2))]
    what = Job("eager", Path("unused"), timed, compared, threads=1, device="cpu", spin=False)
    start_seconds, embeddings = warm_up(what, lambda inputs: inputs + 1, encode, time.perf_counter())
    assert sizes == [1, 3, 4, 2]
    assert 0.01 <= start_seconds < 0.5
    assert embeddings.tolist() == [[4.0, 4.0]] * 4 + [[2.0, 2.0]] * 2

    sizes.clear()
    seconds = take_turn(Case(3, None), passes=4)
    assert sizes == [3] * 5  # the first to warm up
    assert len(seconds) == 4
    assert min(seconds) >= 0.01


@pytest.mark.parametrize(("limit", "passes", "runs"), [(0.05, 3, 4), (0.0, 1, 1)])
def test_a_slow_turn_ends_early(limit: float, passes: int, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "TURN_SECONDS", limit)
    calls: list[int] = []
    what = Job("eager", Path("unused"), {Case(1, None): np.ones((1, 2))}, [np.ones((1, 2))], 1, "cpu", False)

    def encode(inputs: job.Array) -> job.Array:
        calls.append(len(inputs))
        time.sleep(0.02)
        return inputs

    warm_up(what, np.ascontiguousarray, encode, 0.0)
    calls.clear()
    assert 1 <= len(take_turn(Case(1, None), passes=100)) <= passes
    assert len(calls) <= runs  # a slow pass counts at once


def test_the_peak_stays_when_memory_is_given_back() -> None:
    code = (
        "import numpy as np; from clip_distill.system.allocator import most_resident_bytes as peak_bytes\n"
        "before = peak_bytes(); block = np.ones(50_000_000 // 8); during = peak_bytes(); del block\n"
        "print(during - before, peak_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    during, after = map(int, done.stdout.split())
    assert 45e6 < during < 100e6
    assert after > 0.95 * during  # the kernel counts in batches


def test_a_process_ends_when_the_one_that_started_it_is_killed() -> None:
    code = (
        "import os, signal, multiprocessing as m; from concurrent.futures import ProcessPoolExecutor as Pool\n"
        "from clip_distill.system.processes import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = Pool(1, mp_context=m.get_context('spawn'), initializer=end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_process_that_runs_an_onnx_file_is_small() -> None:
    code = (
        "import sys, clip_distill.benchmarking.in_onnx; sys.exit(str({'torch', 'open_clip'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
