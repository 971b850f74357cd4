"""How OpenMP's threads wait, as OpenMP itself reports it when a command loads torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clip_distill.system import openmp


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp, which reports this, comes with torch for Linux")
@pytest.mark.parametrize(("environment", "spins"), [({}, openmp.SPINS), ({"GOMP_SPINCOUNT": "17"}, "17")])
def test_threads_spin_shortly_unless_the_environment_says_otherwise(environment: dict[str, str], spins: str) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    variables |= {"OMP_DISPLAY_ENV": "VERBOSE"} | environment
    command = [sys.executable, "-m", "clip_distill", "evaluate", "--help"]
    shown = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown.stderr
