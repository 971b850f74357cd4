"""`clip-distill drop-in`: may a student serve an index that its teacher made?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.system.arguments import Place, spelt
from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.evaluation.drop_in_report import DropInReport
    from clip_distill.towers.spec import Tower

READS = ("image_student", "text_student", "index", "photos")  # places that must be there
EXAMPLES = """\
  # a text student asks an index of the teacher's; captions with their photos are the known queries
  clip-distill drop-in --index stores/b32 --queries DATA/COCO/annotations/captions_val2017.json --text_student runs/text
  # an image student adds photos to rclip's index, whose names are paths
  clip-distill drop-in --index ~/.local/share/rclip/db.sqlite3 --queries queries.tsv --image_student runs/image
  # clip-retrieval's folder, photos somewhere else; queries alone: how many answers stay the same
  clip-distill drop-in --index embeddings --photos PHOTOS --queries queries.txt --image_student runs/image
  # shipped files: the score from which answers are worth showing goes into their export.json
  clip-distill drop-in --index stores/b32 --queries queries.tsv --text_student shipped --export shipped \\
    --precision 80 --out drop-in.json"""


def drop_in(
    index: Place,
    queries: Place,
    image_student: Place | None = None,
    text_student: Place | None = None,
    teacher: str | None = None,
    photos: Place | None = None,
    split: Literal["train", "val"] = "val",
    keep: float = 95.0,
    same: float = 50.0,
    precision: float = 50.0,
    export: Place | None = None,
    out: Place | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 1,
) -> DropInReport:
    """Say whether a student may serve an index that its teacher made: yes, no, or re-index first.

    The exit status says the same: 0, 4, 3.

    Args:
        index: A store, a folder of clip-retrieval (img_emb/, metadata/), a .npy beside a .txt or .json of names,
            rclip's database, or a .parquet with names and embeddings, such as Immich's table smart_search.
        queries: Captions with the names of their photos (COCO .json, .tsv, .csv, .jsonl, .parquet): known queries. Or
            texts alone (.txt): then only answers are compared.
        image_student: Run folder of an image student, or of exported files: its photos join those of the index.
        text_student: Run folder of a text student, or of exported files: it asks.
        teacher: What made the index; by default what its store says, or the student.
        photos: Folder of the index's photos, for an image student; not needed where names are paths.
        split: Which table of a store.
        keep: Least share of the known queries' recall that must be kept, in per cent.
        same: Least share of the same first ten answers, in per cent, where no right answers are known.
        precision: A score is sought from which on so many per cent of the queries have their photo among the first
            ten answers, where half of them ask for something that is not there.
        export: Folder that `export` wrote, whose export.json gets that score.
        out: JSON file for all numbers; the curve of scores is drawn beside it, as .svg.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Images or texts per forward pass.
        workers: Processes that decode images.

    Returns:
        The report: `verdict`, and every number.

    Raises:
        Error: The index can't be read, its photos are not found, or a student is of another teacher.

    Example:
        >>> report = cd.drop_in(index=STORE, queries=DATA / "COCO/annotations/captions_val2017.json", text_student=RUN)
        >>> report.numbers["queries"]["count"], report.verdict in ("yes", "no", "re-index first")
        (24, True)
    """
    from clip_distill.corpus.captions import read_captions
    from clip_distill.corpus.report import Skips
    from clip_distill.evaluation.compare import Device
    from clip_distill.evaluation.drop_in_report import (
        DropInReport,
        Queries,
        compare_drop_in,
        judge,
        photos_of,
        thresholds,
    )
    from clip_distill.evaluation.loading import load_measured
    from clip_distill.store.foreign import open_index
    from clip_distill.system.files import write_json
    from clip_distill.towers.spec import pick_device

    names: dict[Tower, str | None] = {"image": spelt(image_student), "text": spelt(text_student)}
    students = {tower: (name, *load_measured(name, tower)) for tower, name in names.items() if name is not None}
    if not students:
        raise InvalidValue("expected a student: --image_student, --text_student, or both")
    opened, skips = open_index(str(spelt(index)), split), Skips()
    asked = Queries.of(list(read_captions(str(spelt(queries)), None, None, skips)), opened.names)
    say(*skips.lines())
    made_by = [
        record["name"] for record in (opened.teacher, *(spec.teacher for _, spec, _, _ in students.values())) if record
    ]
    if (teacher := teacher or next(iter(made_by), None)) is None:
        raise InvalidValue("expected --teacher, since neither index nor student says what made the index")
    files = photos_of(opened, spelt(photos)) if "image" in students else None
    how = Device(pick_device(device), batch_size, workers)
    numbers: dict[str, Any] = compare_drop_in(opened, asked, teacher, students, files, how)
    numbers["thresholds"] = thresholds(numbers.pop("embeddings"), asked.right, precision / 100)
    numbers["verdict"], numbers["reason"] = judge(numbers["stages"], keep, same)
    if out is not None:
        numbers["curve"] = draw(Path(str(spelt(out))).with_suffix(".svg"), numbers["thresholds"])
        write_json(Path(str(spelt(out))), numbers)
    if export is not None:
        keep_threshold(Path(str(spelt(export))), numbers["thresholds"])
    return DropInReport(numbers, spelt(out))


def draw(path: Path, found: dict[str, Any]) -> str | None:
    """Draw precision and answered queries by score; the file's name, or None where there is nothing to draw with."""
    if not found:
        return None
    try:
        from clip_distill.reporting.charts import score_curves, standalone
    except MissingPackage as error:
        say(f"no curve is drawn: {error}")
        return None
    from clip_distill.system.files import write_bytes

    write_bytes(path, standalone(score_curves(found)).encode())
    return str(path)


def keep_threshold(folder: Path, found: dict[str, Any]) -> None:
    """Write the score from which answers are worth showing into an export.

    Raises:
        InvalidValue: It is no export, or no right answers are known.
    """
    from clip_distill.exports import EXPORT_FILE
    from clip_distill.system.files import read_json, write_json

    if not (folder / EXPORT_FILE).is_file():
        raise InvalidValue(f"--export {folder}: expected a folder that `clip-distill export` wrote, with {EXPORT_FILE}")
    if not found:
        raise InvalidValue(
            "--export: expected queries with the names of their photos, to find a score; found texts alone"
        )
    name = "re-indexed" if "re-indexed" in found else "after"
    kept = {key: found[name][key] for key in ("threshold", "precision", "answered")}
    write_json(folder / EXPORT_FILE, read_json(folder / EXPORT_FILE) | {"score": kept})
    say(f"{folder / EXPORT_FILE}: score {kept['threshold']:.3f}")
