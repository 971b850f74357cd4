"""The bed of `benchmarks/faults.py`, whose faults are injected here a few times each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Data, and a server that forks processes."""
    if sys.platform != "linux":
        pytest.skip("faults are injected by Linux's own calls")
    from faults_bed import Bed
    from faults_warm import Warm

    folder = tmp_path_factory.mktemp("faults")
    with Warm(folder / "warm") as warm:
        yield Bed(warm, folder / "bed")
