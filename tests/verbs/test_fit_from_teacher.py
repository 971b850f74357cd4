"""`clip-distill fit` with weights and vocabulary cut from the teacher's."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch

from clip_distill.cli import main as cli
from clip_distill.store.ensemble import write_ensemble
from clip_distill.teachers import load_teacher
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import load_tower


@pytest.fixture(scope="module")
def folder(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of its own in `teacher/`, which may be moved, and the store that it made in `store/`."""
    folder = tmp_path_factory.mktemp("from-teacher")
    copytree(tiny_teacher.removeprefix("local-dir:"), folder / "teacher")
    options = ["--teacher", f"local-dir:{folder / 'teacher'}", "--store", str(folder / "store"), "--workers", "0"]
    cli.main(["embed", "--data", str(tiny_data), "--device", "cpu", *options])
    return folder


def fit(tower: str, data: Path, store: Path, out: Path, *options: str) -> None:
    base = ["--tower", tower, "--data", str(data), "--store", str(store), "--out", str(out), "--loader.workers", "0"]
    base += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    cli.main(["fit", "--preset", "none", *base, "--student.init", "teacher", *options])


STILL = ["--optimizer.lr", "0"]
SAME_SIZE = {
    "image": "{input_resolution: 32, patch_size: 8, width: 64, layers: 2, heads: 2}",
    "text": "{transformer_width: 32, transformer_layers: 2, transformer_heads: 2}",
}


@pytest.mark.parametrize("target", ["stored", "online"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_student_of_the_teachers_size_starts_as_the_teacher(
    tower: str, target: str, tiny_data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tower, tiny_data, folder / "store", tmp_path, "--student.options", SAME_SIZE[tower], *STILL, "--target", target)
    assert f"from local-dir:{folder / 'teacher'}" in capsys.readouterr().out
    _, student = load_tower(tmp_path)
    _, teacher = load_teacher(f"local-dir:{folder / 'teacher'}", tower)  # type: ignore[arg-type]
    theirs = teacher.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in student.state_dict().items())


def test_a_pruned_student_starts_with_the_teachers_rows_and_can_be_evaluated(
    tiny_data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--student.options", "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}"]
    options += ["--student.vocabulary", "corpus", "--student.select", "principal"]
    fit("text", tiny_data, folder / "store", tmp_path, *options)
    spec, student = load_tower(tmp_path)
    vocabulary = TokenizerSpec(**spec.tokenizer).vocab_size
    assert student.token_embedding.weight.shape == (vocabulary, 16)
    assert 512 < vocabulary < 700
    cli.main(["evaluate", "--data", str(tiny_data), "--store", str(folder / "store"), "--text_student", str(tmp_path)])
    assert "R@1" in capsys.readouterr().out


def test_a_resumed_run_needs_no_teacher(tiny_data: Path, folder: Path, tmp_path: Path) -> None:
    options = ["--student.options", SAME_SIZE["text"]]
    fit("text", tiny_data, folder / "store", tmp_path, *options)
    teacher = (folder / "teacher").rename(folder / "away")
    try:
        more = [*options, "--trainer.max_epochs", "2"]
        fit("text", tiny_data, folder / "store", tmp_path, *more, "--resume", "true")
        with pytest.raises(SystemExit, match="expected an open_clip folder"):
            fit("text", tiny_data, folder / "store", tmp_path, *options, "--overwrite", "true")
    finally:
        (folder / "away").rename(teacher.with_name("teacher"))


def test_another_teacher_than_the_stores_is_an_error(
    tiny_data: Path, folder: Path, tiny_plain_teacher: str, make_teacher: object, tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=5)  # type: ignore[operator]
    with pytest.raises(SystemExit, match=r"(?s)was made from something else.*weights_sha256"):
        fit("text", tiny_data, folder / "store", tmp_path / "run", "--teacher", other)


def test_several_teachers_have_no_weights_to_start_from(tiny_data: Path, folder: Path, tmp_path: Path) -> None:
    write_ensemble(tmp_path / "both", [str(folder / "store")] * 2, "concat")
    with pytest.raises(SystemExit, match="expected one teacher to load, found several"):
        fit("text", tiny_data, tmp_path / "both", tmp_path / "run")


def test_an_image_student_has_no_vocabulary(tiny_data: Path, folder: Path, tmp_path: Path) -> None:
    options = ["--student.options", SAME_SIZE["image"], "--student.vocabulary", "corpus"]
    with pytest.raises(SystemExit, match="student.vocabulary corpus: expected --tower text, found image"):
        fit("image", tiny_data, folder / "store", tmp_path, *options)
