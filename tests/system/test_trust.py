"""Files that a stranger made run no code of theirs."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import clip_distill as cd
from clip_distill.cli import main as cli
from clip_distill.corpus.captions import read_captions
from clip_distill.corpus.files import images_of
from clip_distill.corpus.report import Skips
from clip_distill.recipes import read_recipe
from clip_distill.store.foreign import open_index
from clip_distill.system.registry import TRUST, require_trust

NAMES = ["evil_part:Attr", {"loss": {"names": ["cosine", "evil_part:Attr"]}}, {"evil_part:Attr": {"delta": 1}}]
NAMES += [{"trainer": {"callbacks": [{"class_path": "evil_part.Attr"}]}}]


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the import of `evil_part`, which lies in the working directory, would make."""
    found = tmp_path / "it-ran"
    (tmp_path / "evil_part.py").write_text(f"open({str(found)!r}, 'w').close()\nAttr = dict\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(TRUST, raising=False)
    sys.modules.pop("evil_part", None)
    return found


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", NAMES)
def test_names_of_code_are_found_wherever_they_stand(content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST, raising=False)
    with pytest.raises(cd.InvalidValue, match=r"x\.yaml: expected no code of its own, found evil_part.*--trust_code"):
        require_trust("x.yaml", content)
    monkeypatch.setenv(TRUST, "1")
    require_trust("x.yaml", content)


def test_names_of_teachers_paths_and_the_packages_own_parts_are_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST, raising=False)
    names = ["transformers:openai", "local-dir:teacher", "hf-hub:org/repo", "upright:x", "s3://bucket/a:b", "cosine"]
    names += ["clip_distill.students.image:vit"]
    require_trust("x", {"a": names, "class_path": "lightning.pytorch.callbacks.EarlyStopping"})


@pytest.mark.parametrize("line", ["student: {name: 'evil_part:Attr'}", "loss: {names: ['evil_part:Attr']}"])
def test_a_recipe_imports_nothing(line: str, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("stranger.yaml").write_text(f"tower: text\ndata: d\nstore: s\nout: o\n{line}\n")
    with pytest.raises(cd.Error, match="expected no code of its own, found evil_part:Attr"):
        cd.fit("stranger.yaml")
    with pytest.raises(SystemExit):
        cli.main(["fit", "--recipe", "stranger.yaml"])
    assert "expected no code of its own, found evil_part:Attr" in capsys.readouterr().err
    Path("tag.yaml").write_text("tower: !!python/object/apply:evil_part.Attr []\n")
    with pytest.raises(cd.Error, match="expected a recipe's YAML"):
        read_recipe("tag.yaml")
    assert not marker.exists()


def test_a_students_folder_imports_nothing(tiny_runs: dict[str, Path], marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    source = tiny_runs["text"] / "student"
    described = json.loads((source / "tower.json").read_text()) | {"builder": "evil_part:Attr"}
    (folder / "tower.json").write_text(json.dumps(described))
    (folder / "tower.safetensors").write_bytes((source / "tower.safetensors").read_bytes())
    with pytest.raises(cd.Error, match=r"tower\.json: expected no code of its own, found evil_part:Attr"):
        cd.load(folder)
    assert not marker.exists()


def test_pickles_in_checkpoints_and_arrays_are_not_read(marker: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(marker)}, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    np.save(tmp_path / "v.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    (tmp_path / "v.txt").write_text("a.jpg\n")
    with pytest.raises(ValueError, match="allow_pickle"):
        open_index(str(tmp_path / "v.npy"), "train")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as file:
        file.writestr("a.npy", (tmp_path / "v.npy").read_bytes())
    assert not marker.exists()


def test_every_load_in_the_package_refuses_pickles() -> None:
    for path in Path(cd.__file__).parent.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}:{number}"
            assert "allow_pickle=True" not in line, f"{path}:{number}"
            assert "(trust_remote_code=True" not in line and "yaml.load(" not in line, f"{path}:{number}"


def test_a_tar_is_never_unpacked_and_only_its_files_are_read(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "data"
    inside.mkdir()
    with tarfile.open(inside / "s.tar", "w") as tar:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("tty.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(outside)
            tar.addfile(member)
        for name in ("../outside/a.txt", "/etc/b.txt", "c.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"a dog"))
    skips = Skips()
    assert len([*read_captions(str(inside / "s.tar"), None, None, skips)]) == 3
    assert [*images_of(str(inside / "s.tar"), False, skips)] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
