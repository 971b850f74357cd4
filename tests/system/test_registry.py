"""Names to objects: tables, the user's own modules, and what is said when there is no such thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_distill.exports import TARGETS
from clip_distill.exports.target import Target
from clip_distill.losses import LOSSES
from clip_distill.pixels.views import AUGMENTATIONS
from clip_distill.students import STUDENTS
from clip_distill.system.registry import resolve
from clip_distill.teachers import TEACHERS

TABLES = {"loss": LOSSES, "student": STUDENTS, "teacher": TEACHERS, "augmentation": AUGMENTATIONS, "export": TARGETS}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table])
def test_every_name_in_a_table_is_there(kind: str, name: str) -> None:
    found = resolve(kind, TABLES[kind], name)
    assert callable(found) or (kind == "export" and isinstance(found, Target) and found.name == name)


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_part_found.py").write_text("VALUE = 42\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # undone after the test, unlike what resolve appends
    assert resolve("loss", LOSSES, "own_part_found:VALUE") == 42


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cosin", "unknown loss 'cosin': expected one of affinity, bank_kl, ce, cosine, .*'my_loss:Attr'"),
        ("my_loss:", "unknown loss 'my_loss:'"),
        (":Loss", "unknown loss ':Loss'"),
        ("no_such_module:Loss", "there is no module 'no_such_module'"),
        ("json.nowhere:Loss", "there is no module 'json.nowhere'"),
        ("json:Loss", "module 'json' has no 'Loss'"),
    ],
)
def test_an_unknown_name_is_told_from_a_missing_module_or_attribute(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve("loss", LOSSES, name)


def test_what_a_module_fails_to_import_is_not_taken_for_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_part_broken.py").write_text("import own_part\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'own_part'"):
        resolve("loss", LOSSES, "own_part_broken:Loss")
