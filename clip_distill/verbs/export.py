"""`clip-distill export`: a student, with the teacher's other tower or the other student, for other programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.exports import EXPORTS, ONNX_FILE
from clip_distill.system.arguments import Place, plain, spelt
from clip_distill.system.errors import AlreadyExists, InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from torch import nn

    from clip_distill.towers.spec import Tower, TowerSpec

EXAMPLES = """\
  # a text student beside the teacher's image tower
  clip-distill export --store stores/b32 --text_student runs/text --out exported
  # both students: no teacher is loaded
  clip-distill export --image_student runs/image --text_student runs/text --out exported
  # ONNX files with int8 weights, for onnxruntime without torch
  clip-distill export --image_student runs/image --text_student runs/text --format onnx-int8 --out exported
  # the teacher lies elsewhere now
  clip-distill export --teacher local-dir:moved/clip --image_student runs/image --out exported --overwrite true"""

MARKS = ("open_clip_config.json", ONNX_FILE)  # one of them is in every folder that was exported


def export(
    out: Place,
    store: Place | None = None,
    teacher: str | None = None,
    image_student: Place | None = None,
    text_student: Place | None = None,
    format: str | type[Any] = "open_clip",
    overwrite: bool = False,
) -> Path:
    """Write a student, with the teacher's other tower or the other student, as a folder for other programs.

    Args:
        out: Folder to write; before it takes its place, it is loaded back and compared.
        store: What `embed` wrote; it names the teacher. By default the student does.
        teacher: The teacher's name, where it has another one now than the store or the student says.
        image_student: Run folder of an image student.
        text_student: Run folder of a text student.
        format: open_clip (a folder that open_clip loads), onnx or onnx-int8 (a file per tower, and onnx.json, which
            says how they are fed), or module:Attr of your own writer.
        overwrite: Replace an earlier export in `out`.

    Returns:
        The folder.

    Raises:
        Error: `out` is taken, a student is of another teacher, or what was written gives other embeddings.

    Example:
        >>> cd.load(cd.export(text_student=RUN, out=OUT)).towers
        ('image', 'text')
    """
    from clip_distill.system.registry import resolve

    folder = Path(out)
    _require_free(folder, overwrite)
    write = resolve("export", EXPORTS, plain(format))
    towers, info = _load_towers({"image": spelt(image_student), "text": spelt(text_student)}, spelt(store), teacher)

    def write_all(aside: Path) -> None:
        write(aside, towers["image"], towers["text"], info)
        _copy_map(aside, info, teacher)

    _write_aside(folder, write_all)
    say(f"{folder}: written, read back and compared")
    if format == "open_clip":
        say(
            "\nimport open_clip\n"
            f"model, _, preprocess = open_clip.create_model_and_transforms({f'local-dir:{folder}'!r})\n"
            f"tokenizer = open_clip.get_tokenizer({f'local-dir:{folder}'!r})"
        )
    return folder


def _load_towers(
    names: dict[Tower, str | None], store: str | None, teacher: str | None
) -> tuple[dict[Tower, tuple[TowerSpec, nn.Module]], dict[str, Any]]:
    """Both towers, the teacher's own where no student is named, and the record of the teacher that they share."""
    from clip_distill.evaluation.loading import load_student, require_taught_by, teacher_of_store
    from clip_distill.teachers import load_teacher

    chosen = {tower: name for tower, name in names.items() if name is not None}
    if not chosen:
        raise InvalidValue("expected --image_student, --text_student or both, found neither")
    towers = {tower: load_student(name, tower) for tower, name in chosen.items()}
    titles = {tower: f"student {name}" for tower, name in chosen.items()}
    info = teacher_of_store(store) if store is not None else None
    info = info or next((spec.teacher for spec, _ in towers.values() if spec.teacher), None)
    for tower in names.keys() - chosen.keys():
        name = teacher or (info or {}).get("name")
        if name is None:
            raise InvalidValue(f"expected --store or --teacher, which has the {tower} tower; found neither")
        if info and info.get("ensemble") and teacher is None:
            raise InvalidValue(f"expected both students: {name} is several teachers, and has no {tower} tower to write")
        towers[tower], titles[tower] = load_teacher(name, tower), f"teacher {name}"
        info = info or towers[tower][0].teacher
    if info is None:
        raise InvalidValue("expected --store, since neither student says which teacher it has")
    for tower, (spec, _) in towers.items():
        require_taught_by(titles[tower], spec, info)
    return towers, info


def _copy_map(folder: Path, info: dict[str, Any], teacher: str | None) -> None:
    """Of a teacher that was reduced, the map goes along: what the parent embedded is reduced by it, too."""
    from clip_distill.towers.reduction import MAP_FILE, PREFIX, read_reduction

    name = teacher or info["name"]
    if name.startswith(PREFIX):
        place = Path(name.removeprefix(PREFIX))
        read_reduction(place)
        shutil.copyfile(place / MAP_FILE, folder / MAP_FILE)


def _require_free(folder: Path, overwrite: bool) -> None:
    """Only an export may be replaced, and only when asked."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise AlreadyExists(f"{folder}: expected a new folder, found one; --overwrite true replaces an earlier export")
    if not any((folder / name).is_file() for name in MARKS):
        raise AlreadyExists(f"{folder}: expected an earlier export to replace, found no {' or '.join(MARKS)} in it")


def _write_aside(folder: Path, write: Callable[[Path], None]) -> None:
    """Write beside `folder`, then rename: there is a whole export at any moment after the first, or none."""
    aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    aside.mkdir(parents=True)
    try:
        write(aside)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
