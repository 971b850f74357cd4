"""Whatever befalls a command, it ends with what an undisturbed one leaves, or says clearly what is wrong."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/faults.py"
TIMES = {
    **{"kill-embed": 2, "kill-fit": 2, "kill-export": 1, "kill-reduce": 1, "kill-search": 1},
    **{"full-fit": 2, "full-export": 1, "full-search": 2, "disk-embed": 1, "disk-reduce": 1},
    **{"read-only-search": 1, "vanish-embed": 1, "vanish-search": 1, "shm-4M": 1, "dead-rank": 1},
    **{"soak-fit": 4, "soak-search": 100},
}


@pytest.mark.parametrize(("name", "times"), TIMES.items(), ids=TIMES)
def test_nothing_is_lost(bed: Any, name: str, times: int) -> None:
    from faults import FAULTS
    from faults_warm import Skip

    try:
        outcomes = [*FAULTS[name].inject(bed, times, random.Random(0))]
    except Skip as reason:
        pytest.skip(str(reason))
    assert outcomes and [each for each in outcomes if each is not None] == []


def test_a_cut_file_is_noticed(bed: Any) -> None:
    """What the programme itself would miss, if it compared nothing."""
    from faults_bed import difference, files, read

    out = bed.place()
    bed.warm.verb(*bed.works["reduce"].argv(out)).wait()
    whole = files(out)
    rows = next(out.rglob("*.npy"))
    rows.write_bytes(rows.read_bytes()[:-1])
    assert difference(whole, files(out)) is not None
    with pytest.raises(SystemExit):
        read("reduce", str(out))


def test_the_program_prints_a_table_and_writes_nothing_else(tmp_path: Path) -> None:
    words = ["--minutes", "0.1", "--only", "kill-reduce"]
    ended = subprocess.run([sys.executable, PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert lines[0] == "| fault | injected | survived | lost |"
    assert lines[2:] == ["| `reduce` killed at any moment | 1 | 1 | 0 |"]
    assert not [*tmp_path.iterdir()]
