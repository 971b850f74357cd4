"""What can be told without torch is told before torch is loaded: help, typos, folders that are not there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clip_distill.cli.main import VERBS
from clip_distill.system.errors import NotFound
from clip_distill.system.typos import did_you_mean, one_line, require_place

HEAVY = ("torch", "lightning", "open_clip", "timm", "transformers", "pandas", "scipy", "matplotlib", "onnxruntime")
STORE_VERBS = ("info", "verify", "reduce", "export", "import", "ensemble")
MISTAKES = [  # words → what the line says
    ("fitt", "unknown verb 'fitt': expected one of .*: did you mean fit"),
    ("store verfy", "unknown verb 'verfy': .*: did you mean verify"),
    ("fit --loader.batch_sze 3", "unknown flag --loader.batch_sze: did you mean --loader.batch_size"),
    ("fit --lr 3", "unknown flag --lr: did you mean --optimizer.lr"),
    ("fit --tower text --store . --out x --preset balancd", "--preset: expected one of .*: did you mean balanced"),
    ("fit --tower text --data nowhere --store . --out x", "--data nowhere: expected a folder or file, found nothing"),
    ("fit --tower text --data . --store ./stor --out x", "--store ./stor: expected .*: did you mean ./store"),
    ("fit --from nowhere --out x", "--from nowhere: expected a folder or file, found nothing"),
    ("fit --recipe flickr8k_txt", "flickr8k_txt: expected a recipe's YAML, .*: did you mean flickr8k_text"),
    ("embed --data nowhere --teacher x --store y", "--data nowhere: expected a folder or file, found nothing"),
    ("embed --batch-sze 3", "unknown flag --batch-sze: did you mean --batch_size"),
    ("evaluate --data . --store nowhere", "--store nowhere: expected a folder or file, found nothing"),
    ("evaluate --data . --image-student runs", "--image_student runs: expected a folder or file, found nothing"),
    ("search /nope --student .", "--photos /nope: expected a folder or file, found nothing"),
    ("search . --student shipped", "--student shipped: expected a folder or file, found nothing"),
    ("report nowhere", "--runs nowhere: expected a folder or file, found nothing"),
    ("plan --sconds 3", "unknown flag --sconds: did you mean --seconds"),
]


def test_help_and_mistakes_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    words = [f"{verb} --help" for verb in VERBS] + ["fit --help all", *(f"store {each} --help" for each in STORE_VERBS)]
    code = (
        "import contextlib, io, json, sys\n"
        "from clip_distill.cli.main import main\n"
        f"for line in {words + [line for line, _ in MISTAKES]!r}:\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "        try: main(line.split())\n"
        "        except SystemExit as end: print('' if isinstance(end.code, int | None) else end.code)\n"
        f"    print(json.dumps([line, out.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {line: (said, loaded) for line, said, loaded in map(json.loads, ran.stdout.splitlines())}
    for line in words:
        said, loaded = found[line]
        assert said.startswith("usage: ") or "clip-distill store" in said, line
        assert not loaded, (line, loaded)
    for line, expected in MISTAKES:
        said, loaded = found[line]
        assert not loaded, (line, loaded)
        assert re.search(expected, said), (line, said)
        assert len(said.strip().splitlines()) <= 2, said
    assert len(found["fit --help"][0].splitlines()) < 120 < len(found["fit --help all"][0].splitlines())
    assert "lightning.ai" in found["fit --help"][0] and "--trainer.devices" not in found["fit --help all"][0]


@pytest.mark.parametrize("word", ["ViT-B-32/openai", "local-dir:nowhere", "s3://bucket/x", "org/model"])
def test_names_of_teachers_and_urls_are_no_paths(word: str) -> None:
    require_place("--image_student", word)


def test_a_path_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with pytest.raises(
        NotFound, match=r"imge: expected a folder or file, found nothing there: did you mean .*/image\?"
    ):
        require_place("--image_student", f"{tmp_path}/imge")
    with pytest.raises(NotFound, match="--teacher '': expected"):
        require_place("--teacher", "")


def test_the_nearest_word() -> None:
    assert did_you_mean("--lr", ["--optimizer.lr", "--loss.names"]) == ": did you mean --optimizer.lr?"
    assert did_you_mean("zzz", ["--optimizer.lr"]) == ""
    assert one_line("some\n  message", []) == "some message"
