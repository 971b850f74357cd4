"""`clip-distill search` in the terminal, and its server as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import clip_distill as cd
from clip_distill.cli import main as cli


def test_the_terminal_answers_as_the_student_does(
    exported: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["search", str(tiny_data / "image"), "--student", str(exported), "--index", str(tmp_path / "index")]
    cli.main([*argv, "--query", "a red circle", "--top", "3", "--json", "--quantize", "int8"])
    shown = capsys.readouterr().out
    found = json.loads(shown[shown.index("[\n") :])
    student = cd.load(exported)
    photos = sorted((tiny_data / "image").iterdir())
    scores = student.encode_image(photos) @ student.encode_text("a red circle")
    assert found[0]["path"] == str(photos[scores.argmax()]) and len(found) == 3
    assert found[0]["score"] == pytest.approx(float(scores.max()), abs=5e-3)
    cli.main([*argv, "--index_only", "--quantize", "int8"])
    assert "0 photos added, 0 moved, 0 removed" in capsys.readouterr().out
    cli.main([*argv, "--query", "2:circle -red", "--top", "2", "--quantize", "int8"])
    assert len(re.findall(r"^-?\d\.\d{3}  /", capsys.readouterr().out, re.M)) == 2


def test_a_run_asks_by_its_teachers_other_tower(tiny_runs: dict[str, Path], tiny_data: Path, tmp_path: Path) -> None:
    asked = {"photos": [tiny_data / "image"], "query": "a dog", "top": 2}
    found = cd.search(**asked, student=tiny_runs["image"], index=tmp_path / "one")
    photos = [each["path"] for each in found]
    both = cd.load(image=tiny_runs["image"], text=cd.load(tiny_runs["image"]).teacher)
    expected = both.encode_image(photos) @ both.encode_text("a dog")
    assert [each["score"] for each in found] == pytest.approx(expected.tolist(), abs=2e-3)
    with pytest.raises(cd.InvalidValue, match="expected an index made by"):
        cd.search(**asked, student=tiny_runs["text"], index=tmp_path / "one")
    parts = {"image_student": tiny_runs["image"], "text_student": tiny_runs["text"]}
    assert len(cd.search(**asked, **parts, index=tmp_path / "one")) == 2


def test_the_teacher_beside_has_an_index_of_its_own(
    exported: Path, tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["search", str(tiny_data / "image"), "--student", str(exported), "--index", str(tmp_path / "index")]
    cli.main([*argv, "--beside", tiny_teacher, "--index_only", "--device", "cpu"])
    assert f"beside, {tiny_teacher}: 24 photos added" in capsys.readouterr().out
    assert (tmp_path / "index-beside/index.sqlite3").is_file()


def test_what_is_lacking_is_told(tiny_data: Path, tmp_path: Path, exported: Path) -> None:
    with pytest.raises(cd.InvalidValue, match="expected at least one folder"):
        cd.search([])
    with pytest.raises(cd.InvalidValue, match="expected a student of both towers, or --teacher"):
        cd.search([tiny_data / "image"], query="dog")
    with pytest.raises(cd.NotFound, match="expected a folder of photos"):
        cd.search([tmp_path / "none"], student=exported, index=tmp_path / "index", query="dog")


def test_the_server_as_it_is_started_and_ended(exported: Path, tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    argv = [str(tiny_data / "image"), "--student", str(exported), "--index", str(tmp_path / "index"), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_distill", "search", *argv, "--open", "false"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        assert "24 photos added" in process.stdout.readline()
        with urllib.request.urlopen(f"{address[0]}api/search?q=dog&k=3") as response:
            assert len(json.load(response)) == 3
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, -signal.SIGINT, 130)


def test_searching_an_export_needs_no_torch(exported: Path, tiny_data: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'open_clip', 'lightning', 'timm', 'onnx'))\n"
        "import clip_distill as cd\n"
        "found = cd.search([sys.argv[1]], student=sys.argv[2], index=sys.argv[3], query='a red circle')\n"
        "from clip_distill.photosearch import serve, server\n"
        "sys.exit(0 if found else 'nothing found')\n"
    )
    argv = [str(tiny_data / "image"), str(exported), str(tmp_path / "index")]
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
