"""What is said once, however many processes a run has."""

from __future__ import annotations

import pytest
from clip_distill.system.talk import say


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_first_process_alone_speaks(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("alone")
    monkeypatch.setenv(name, "0")
    say("first", "of two")
    monkeypatch.setenv(name, "1")
    say("second")
    assert capsys.readouterr().out == "alone\nfirst\nof two\n"
