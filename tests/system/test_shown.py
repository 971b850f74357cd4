"""Commands as they can be pasted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clip_distill.system.shown import command, install


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_a_command_is_called_as_the_program_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = program(tmp_path / "a b", "clip-distill"), program(tmp_path / "elsewhere", "clip-distill")
    monkeypatch.chdir(tmp_path)
    for path, called, shown in (
        (own.parent, own, "clip-distill"),
        (other.parent, own, "'a b/clip-distill'"),
        (tmp_path, other, "elsewhere/clip-distill"),
    ):
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.setattr(sys, "argv", [str(called), "fit"])
        assert command("export", "--out", Path("my exports")) == f"{shown} export --out 'my exports'"
    monkeypatch.chdir(other.parent)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(own)])
    assert command("x") == f"'{own}' x"


def test_as_a_module_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = program(tmp_path / "bin", "python")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "argv", ["/x/clip_distill/__main__.py"])
    monkeypatch.setenv("PATH", str(python.parent))
    assert command("fit") == "python -m clip_distill fit"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("fit") == "bin/python -m clip_distill fit"


def test_from_another_program_the_command_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert command("fit") == "clip-distill fit"


def test_an_extra_is_named_only_where_it_lacks() -> None:
    assert install("search", "json", "csv") == ""
    assert install("search", "json", "no_such_module") == " (pip install 'clip-distill[search]')"
