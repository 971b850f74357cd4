"""How OpenMP's threads wait, as OpenMP itself reports it when a command loads torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clip_distill.system import openmp


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp, which reports this, comes with torch for Linux")
def test_threads_spin_shortly() -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    variables |= {"OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-m", "clip_distill", "evaluate", "--data", ".", "--store", "."]
    shown = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert f"GOMP_SPINCOUNT = '{openmp.SPINS}'" in shown.stderr


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "17")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    openmp.wait_shortly()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"]) == ("17", "ACTIVE")
