"""What is said: lines through a logger, bars on a terminal, and lines now and then in their place elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_distill.cli import main as cli
from clip_distill.system import talk


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    talk.to_console()


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_first_process_alone_speaks(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.say("alone")
    monkeypatch.setenv(rank, "0")
    talk.say("first", "of two")
    monkeypatch.setenv(rank, "1")
    talk.say("second")
    assert capsys.readouterr().out == "alone\nfirst\nof two\n"


def test_a_program_that_imports_the_package_hears_nothing_unless_it_asks() -> None:
    code = "from clip_distill.system.talk import say; say('one'); "
    code += "import logging; logging.basicConfig(level='INFO'); say('two')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "INFO:clip_distill:two\n")


STAGE = """
import sys, time
from clip_distill.system import talk
talk.EVERY = 0.2
talk.to_console()
for _ in talk.progress(range(100), "photos", unit=" photos", delay=0):
    time.sleep(0.01)
"""


def test_into_a_pipe_a_long_stage_says_a_line_now_and_then() -> None:
    done = subprocess.run([sys.executable, "-c", STAGE], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert 2 <= len(lines) <= 6
    assert all(line.startswith("photos: ") and " of 100 photos, " in line and line.endswith(" left") for line in lines)
    assert done.stderr == "" and "\r" not in done.stdout


def test_on_a_terminal_it_draws_one_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", STAGE], stdout=subprocess.PIPE, stderr=theirs)
    out, _ = process.communicate(timeout=60)
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    assert out == b""
    assert "100%" in drawn and "\r" in drawn and drawn.count("\n") <= 2


def test_a_short_stage_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(talk.progress([1, 2], "photos")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_quiet_leaves_results_and_warnings(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--quiet", "store", "verify", "--store", str(tiny_store)])
    assert capsys.readouterr().out == ""
    assert talk.is_quiet()
    cli.main(["store", "verify", "--store", str(tiny_store)])
    assert "all as written" in capsys.readouterr().out


def test_verbose_shows_where_an_error_was_raised(tmp_path: Path) -> None:
    argv = ["store", "verify", "--store", str(tmp_path)]
    with pytest.raises(SystemExit, match="--verbose shows where"):
        cli.main(argv)
    with pytest.raises(ValueError, match="expected a store"):
        cli.main(["--verbose", *argv])
    assert talk.loudness() == logging.DEBUG
