"""Small files, written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_distill.system.errors import AlreadyExists, NotWritten
from clip_distill.system.files import aside, only_one, read_json, sha256, write_bytes, write_json


def test_json_comes_back_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    value = {"名": ["狗", 1, None, 0.5], "nested": {"é": True}}
    write_json(tmp_path / "new" / "a.json", value)
    assert read_json(tmp_path / "new" / "a.json") == value
    assert "狗" in (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_the_old_file_stays_when_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with aside(tmp_path / "out") as beside:
            beside.mkdir()
            (beside / "a").write_text(content)
            assert (tmp_path / "out").exists() == (content == "new")
        assert (tmp_path / "out/a").read_text() == content
    with pytest.raises(RuntimeError), aside(tmp_path / "out") as beside:
        beside.mkdir()
        raise RuntimeError
    assert (tmp_path / "out/a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_beside_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from clip_distill.system.files import aside\n"
    code += "with aside(Path(sys.argv[1])) as beside: beside.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "[a] b")], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with aside(tmp_path / "[a] b") as mine:
        mine.write_text("mine")
        write_bytes(tmp_path / "[a] b", b"whole")
        assert {path.name for path in tmp_path.iterdir()} == {"[a] b", mine.name}
    assert (tmp_path / "[a] b").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "make room"), (errno.EROFS, "name another folder"), (errno.EIO, "Input/output")]
)
def test_a_failed_write_says_why_and_leaves_what_was_there(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(tmp_path / "a", b"old")

    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=said) as raised:
        write_bytes(tmp_path / "a", b"new")
    assert isinstance(raised.value, NotWritten) == (number != errno.EIO)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lock_names_who_holds_it_and_dies_with_its_process(tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from clip_distill.system.files import only_one\n"
    code += "with only_one(Path(sys.argv[1]), 'x'): print(os.getpid(), flush=True); sys.stdin.read()"
    program = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        number = other.stdout.readline().strip()
        match = rf"here: expected .* found process {number} on "
        with pytest.raises(AlreadyExists, match=match), only_one(tmp_path / ".lock", "here"):
            pass
        other.kill()
    with only_one(tmp_path / ".lock", "here"):
        assert read_json(tmp_path / ".lock.json")["process"] == os.getpid()
    assert not list(tmp_path.iterdir())
