"""The front door: its help is quick, and each verb behind it teaches by example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_distill.cli import main as cli
from clip_distill.verbs import store


def test_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["-h"], ["--help"]):
        cli.main(argv)
        shown = capsys.readouterr().out
        assert all(f"  {verb} " in shown and text in shown for verb, text in cli.VERBS.items())


def test_every_module_of_the_verbs_is_a_verb() -> None:
    folder = Path(cli.__file__).parents[1] / "verbs"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == {verb.replace("-", "_") for verb in cli.VERBS}


COMMANDS = [verb for verb in cli.VERBS if verb != "store"] + [f"store {verb}" for verb in store.VERBS]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert shown.startswith(f"usage: clip-distill {command}")
    assert f"clip-distill {command} " in shown.partition("examples:")[2]


def test_the_help_of_store_lists_its_own_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["store", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in store.VERBS)


@pytest.mark.parametrize("argv", [["distill"], ["--loud"]])
def test_an_unknown_verb_lists_the_known_ones(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match=f"unknown verb '{argv[0]}': expected one of embed, fit"):
        cli.main(argv)


def test_a_known_error_ends_as_one_message_and_as_itself_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["embed", "--data", str(tmp_path / "none"), "--teacher", "any", "--store", str(tmp_path / "store")]
    with pytest.raises(SystemExit, match="clip-distill embed: .*none"):
        cli.main(argv)
    monkeypatch.setenv("CLIP_DISTILL_TRACEBACK", "1")
    with pytest.raises((ValueError, FileNotFoundError)):
        cli.main(argv)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = (
        "import sys; from clip_distill.cli import main as cli; cli.main(sys.argv[1:]); "
        "sys.exit(str(sorted({'torch', 'lightning', 'open_clip', 'pyarrow'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code, argument], env=os.environ, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout
