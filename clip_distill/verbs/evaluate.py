"""`clip-distill evaluate`: retrieval of teacher and students, in all pairings of their towers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.system.arguments import Place, listed, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.evaluation.report import EvaluationReport
    from clip_distill.towers.spec import Tower

READS = ("data", "store", "image_student", "text_student")  # places that must be there
EXAMPLES = """\
  # a text student against the teacher, whose embeddings come from the store
  clip-distill evaluate --data DATA --store stores/b32 --text_student runs/text
  # both students: four pairings, with every number in a JSON file
  clip-distill evaluate --data DATA --store stores/b32 --image_student runs/image --text_student runs/text \\
    --out results.json
  # the int8 files that are shipped, in the students' place
  clip-distill export --image_student runs/image --text_student runs/text --to onnx --weights int8 --out shipped
  clip-distill evaluate --data DATA --store stores/b32 --image_student shipped --text_student shipped
  # an exported folder, or any open_clip model of the same width, in a student's place
  clip-distill evaluate --data DATA --store stores/b32 --image_student local-dir:exported
  # a student of another language than the teacher's, on captions of its own
  clip-distill evaluate --data DATA --sources.val_captions zh.json --store stores/b32 --text_student runs/chinese
  # other texts and photos than it was trained on: may it be trusted there?
  clip-distill evaluate --data DATA --store stores/b32 --text_student runs/text --elsewhere '[words, searches.txt]'
  clip-distill evaluate --data DATA --store stores/b32 --image_student runs/image --elsewhere '[PHOTOS]'
  # photos alone: against the teacher's embeddings of those that fit held out
  clip-distill evaluate --data PHOTOS --store stores/photos --image_student runs/image
  # a teacher alone, without a store
  clip-distill evaluate --data DATA --teacher ViT-B-32/openai"""


def evaluate(
    data: Place | None = None,
    store: Place | None = None,
    teacher: str | None = None,
    image_student: Place | None = None,
    text_student: Place | None = None,
    split: Literal["train", "val"] = "val",
    holdout: float = 0.05,
    elsewhere: list[Place] | None = None,
    out: Place | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 1,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> EvaluationReport:
    """Measure retrieval over a whole split, text→image and image→text, for all pairings of teacher and students.

    Where the data has no photos with captions to validate on, each student is compared with the teacher's embeddings
    of the training rows that `fit` held out.

    Args:
        data: Folder in the documented layout (image/, COCO/val2017/, COCO/annotations/, CC/).
        store: What `embed` wrote: the teacher's embeddings are read from it, and the teacher is not loaded.
        teacher: Instead of a store, the teacher's name; both its towers are run here.
        image_student: Run folder of an image student, a folder of exported ONNX files, or any teacher's name
            (local-dir:exported).
        text_student: Run folder of a text student, a folder of exported ONNX files, or any teacher's name.
        split: Which part of the data.
        holdout: The share that the run held out, where there are no photos with captions.
        elsewhere: Other inputs to compare student and teacher on, a thousand of each at most: words (of the teacher's
            vocabulary), files of texts, folders of photos. The teacher is loaded for it.
        out: JSON file for all numbers.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Images or captions per forward pass.
        workers: Processes that decode images.
        sources: Other places for parts of the data.

    Returns:
        The report; its `to_dict()` is what `out` gets: data, teacher, students, pairings.

    Raises:
        Error: Store and data don't belong together, or a student is of another teacher.

    Example:
        >>> report = cd.evaluate(data=DATA, store=STORE, text_student=RUN)
        >>> report.pairing("teacher", "teacher")["kept"]["mean_recall"]
        100.0
    """
    from clip_distill.corpus.layout import scan
    from clip_distill.evaluation.compare import Device, compare, compare_held_out, count, run_teacher, stored_teacher
    from clip_distill.evaluation.elsewhere import compare_elsewhere
    from clip_distill.evaluation.loading import load_measured, teacher_of_store
    from clip_distill.evaluation.report import EvaluationReport
    from clip_distill.system.files import write_json
    from clip_distill.towers.spec import pick_device

    data, store, image_student, text_student, out = map(spelt, (data, store, image_student, text_student, out))
    if (store is None) == (teacher is None):
        raise InvalidValue(f"expected either --store or --teacher, found store={store!r} and teacher={teacher!r}")
    if out is not None and Path(out).is_dir():
        raise InvalidValue(f"--out: expected a JSON file, such as {Path(out) / 'result.json'}, found the folder {out}")
    names: dict[Tower, str | None] = {"image": image_student, "text": text_student}
    students = {tower: (name, *load_measured(name, tower)) for tower, name in names.items() if name is not None}
    corpus = scan(data, sources)
    say(*corpus.report.lines())
    part = corpus.train if split == "train" else corpus.val
    how, skipped = Device(pick_device(device), batch_size, workers), Counter[str]()
    guide = None
    if store is not None and students and split == "val" and part.alone:
        report = compare_held_out(corpus, store, holdout, students, how)
    else:
        images, captions = part.require_images(), part.require_captions()
        if store is not None:
            guide = stored_teacher(store, split, images, captions, skipped, text_student is not None)
        else:
            assert teacher is not None
            guide = run_teacher(teacher, images, captions, skipped, how)
        report = {"data": count(guide.benchmark, split, skipped), **compare(guide, students, how)}
    if elsewhere:
        record = guide.info if guide is not None else teacher_of_store(str(store))
        places = listed(elsewhere)
        report["elsewhere"] = compare_elsewhere(places, record, students, guide, report["students"], how)
    if out is not None:
        write_json(Path(out), report)
    return EvaluationReport(report, None if out is None else str(out))
