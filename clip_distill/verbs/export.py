"""`clip-distill export`: a student, with the teacher's other tower or the other student, for other programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.exports import EXPORT_FILE, TARGETS, TOWERS_FILE
from clip_distill.system.arguments import Place, plain, spelt
from clip_distill.system.errors import AlreadyExists, InvalidValue
from clip_distill.system.files import aside, only_one
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from torch import nn

    from clip_distill.evaluation.exported import Held, Writer
    from clip_distill.towers.spec import Tower, TowerSpec

READS = ("image_student", "text_student", "store", "calibrate")  # places that must be there
EXAMPLES = """\
  # what there is to export to
  clip-distill export --to list
  # a text student beside the teacher's image tower, as an open_clip folder
  clip-distill export --store stores/b32 --text_student runs/text --out exported
  # for rclip and for Immich, in exported/rclip and exported/immich; no teacher is loaded
  clip-distill export --image_student runs/image --text_student runs/text --to rclip,immich --out exported
  # int8, convolutions as well: ranges are set by 256 of your photos
  clip-distill export --image_student runs/image --text_student runs/text --to onnx --weights int8 \\
    --calibrate DATA --out exported
  # the teacher lies elsewhere now
  clip-distill export --teacher local-dir:moved/clip --image_student runs/image --out exported --overwrite true"""

MARKS = ("open_clip_config.json", TOWERS_FILE, EXPORT_FILE)  # one of them is in every folder that was exported


def export(
    out: Place | None = None,
    store: Place | None = None,
    teacher: str | None = None,
    image_student: Place | None = None,
    text_student: Place | None = None,
    to: str | type[Any] = "open_clip",
    weights: Literal["fp32", "fp16", "int8", "int4"] = "fp32",
    calibrate: Place | None = None,
    photos: int = 256,
    min_cosine: float | None = None,
    max_points_lost: float = 1.0,
    overwrite: bool = False,
    push: str | None = None,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> Path | None:
    """Write a student, with the teacher's other tower or the other student, as a folder for other programs.

    Every file is loaded by the runtime that reads it, run, and compared with the student, before the folder is there.
    What falls short is left out, and the command fails; what was good is kept. export.json says what was measured,
    README.md how the folder is used.

    Args:
        out: Folder to write; of several targets, each is a folder in it.
        store: What `embed` wrote; it names the teacher. By default the student does.
        teacher: The teacher's name, where it has another one now than the store or the student says.
        image_student: Run folder of an image student.
        text_student: Run folder of a text student.
        to: What for, several with commas; `list` shows all, with what each needs; or module:Attr of your own.
        weights: fp32; fp16, half the size; int8, a quarter; int4, as int8, with the token table in four bits.
        calibrate: Data folder whose training photos set the ranges of int8's numbers, convolutions' among them, and
            whose validation captions and photos are compared on. Without it convolutions stay in float32.
        photos: How many of them.
        min_cosine: Enough, between a file and its student: of fp32 (0.9999) and fp16 (0.999) the least of all samples,
            of int8 (0.99) and int4 (0.97) the mean.
        max_points_lost: Of text→image R@10 on the validation photos and captions of `calibrate`, for each file.
        overwrite: Replace an earlier export in `out`.
        push: ORG/NAME on the Hugging Face Hub: the folder is uploaded there, as a private repository. Log in with
            `hf auth login`.
        sources: As for embed, beside `calibrate` or instead of it: other places for parts of the data.

    Returns:
        The folder; None for `list`.

    Raises:
        Error: `out` is taken, a student is of another teacher, or what was written gives other embeddings.

    Example:
        >>> cd.load(cd.export(text_student=RUN, out=OUT)).towers
        ('image', 'text')
    """
    from clip_distill.evaluation.exported import Job
    from clip_distill.exports.target import Given

    names = plain(to).split(",")
    if names == ["list"]:
        _show_targets()
        return None
    if out is None:
        raise InvalidValue("expected --out, a folder to write; or --to list, which writes nothing")
    writers = {name: _writer(name) for name in names}
    folders = {name: Path(out) / name if len(names) > 1 else Path(out) for name in names}
    for folder in folders.values():
        _require_free(folder, overwrite)
    students = {"image": spelt(image_student), "text": spelt(text_student)}
    towers, info = _load_towers(students, spelt(store), teacher)  # type: ignore[arg-type]
    own_photos, captions, held = _own_data(calibrate, sources, photos, towers)
    given = Given(towers["image"], towers["text"], info, weights, own_photos, captions, min_cosine)
    job = Job(given, students, teacher, held, max_points_lost)
    short = []
    for name, folder in folders.items():
        with only_one(folder.with_name(f".{folder.name}.lock"), str(folder)), aside(folder) as beside:
            beside.mkdir()
            found = job.write(writers[name], name, beside)
        say(f"{folder}: written, read back and compared" if not found else f"{folder}: without what fell short")
        short += [f"{folder}: {each}" for each in found]
        if name == "open_clip":
            say(
                "\nimport open_clip\n"
                f"model, _, preprocess = open_clip.create_model_and_transforms({f'local-dir:{folder}'!r})\n"
                f"tokenizer = open_clip.get_tokenizer({f'local-dir:{folder}'!r})"
            )
    if short:
        raise InvalidValue("\n".join(short))
    if push is not None:
        from clip_distill.exports import push as hub

        places = {name if len(folders) > 1 else "": folder for name, folder in folders.items()}
        say(f"{hub.push(places, push)}: uploaded, private")
    return Path(out)


def _writer(name: str) -> Writer:
    """The function that writes a target.

    Raises:
        InvalidValue: There is no such target.
    """
    from clip_distill.exports.target import Target
    from clip_distill.system.registry import resolve

    found = resolve("export", TARGETS, name)
    if not isinstance(found, Target):
        return found
    from clip_distill.exports.program import write

    return partial(write, found)


def _own_data(
    calibrate: Place | None, sources: Sources, count: int, towers: dict[Tower, tuple[TowerSpec, nn.Module]]
) -> tuple[list[dict[str, Any]], list[str], Held | None]:
    """Evenly spaced training photos, or validation's where there are none, captions, and what recall is measured on.

    Raises:
        InvalidValue: The data has no photos.
    """
    from clip_distill.corpus.layout import scan
    from clip_distill.evaluation.exported import Held

    if calibrate is None and sources == Sources():
        return [], [], None
    corpus = scan(spelt(calibrate), sources)
    images = corpus.train.images if corpus.train.images.num_rows else corpus.val.require_images()
    step = max(1, images.num_rows // max(1, count))
    captions = corpus.val.captions if corpus.val.captions.num_rows else corpus.train.captions
    texts: list[str] = captions.column("text").to_pylist()[:count]
    return images.to_pylist()[::step][:count], texts, Held.of(corpus, towers)


def _show_targets() -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from clip_distill.exports import PROGRAMS
    from clip_distill.runtimes import RUNTIMES
    from clip_distill.system.registry import resolve

    table = Table("--to", "for", "--weights", "needs", title="clip-distill export --to NAME[,NAME]")
    for name in TARGETS:
        found = None if name in PROGRAMS else resolve("export", TARGETS, name)
        program, needs = PROGRAMS[name] if found is None else (found.program, RUNTIMES[found.runtime].needs)
        weights = "" if found is None else " ".join(RUNTIMES[found.runtime].weights)
        table.add_row(name, program, weights, escape(needs.strip("'")))
    Console().print(table)


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


def _require_free(folder: Path, overwrite: bool) -> None:
    """Only an export may be replaced, and only when asked."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise AlreadyExists(f"{folder}: expected a new folder, found one; --overwrite true replaces an earlier export")
    if not any((folder / name).is_file() for name in MARKS):
        raise AlreadyExists(f"{folder}: expected an earlier export to replace, found no {' or '.join(MARKS)} in it")
