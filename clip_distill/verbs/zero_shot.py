"""`clip-distill zero-shot`: classes of photos, by teacher and students, without any training on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.system.arguments import Place, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.evaluation.zero_shot_report import ZeroShotReport
    from clip_distill.towers.spec import Tower

READS = ("photos", "image_student", "text_student", "labels", "classes")  # places that must be there
EXAMPLES = """\
  # a folder for each class: photos/cat/1.jpg, photos/dog/2.jpg
  clip-distill zero-shot --photos photos --image_student runs/image
  # both students, with CLIP's 80 templates, every number in a JSON file
  clip-distill zero-shot --photos photos --image_student runs/image --text_student runs/text --templates clip \\
    --out zero-shot.json
  # labels in a table with columns file and label; several labels of a photo between ; or |
  clip-distill zero-shot --photos photos --labels labels.csv --text_student runs/text
  # nothing is labelled: how often student and teacher find the same class
  clip-distill zero-shot --photos photos --classes classes.txt --image_student runs/image
  # in Chinese: classes.txt has the folder's name, a tab, and the class in Chinese on each line
  clip-distill zero-shot --photos photos --classes classes.txt --templates chinese --text_student runs/chinese
  # a teacher alone
  clip-distill zero-shot --photos photos --teacher ViT-B-32/openai"""


def zero_shot(
    photos: Place,
    image_student: Place | None = None,
    text_student: Place | None = None,
    teacher: str | None = None,
    labels: Place | None = None,
    classes: Place | None = None,
    templates: str = "short",
    out: Place | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 1,
) -> ZeroShotReport:
    """Find the class of each photo by the nearest class name, with teacher and students, and compare what they find.

    Args:
        photos: Folder with a folder for each class; or any photos, with labels, or with classes alone.
        image_student: Run folder of an image student, a folder of exported files, or any teacher's name.
        text_student: Run folder of a text student, a folder of exported files, or any teacher's name.
        teacher: The teacher's name; by default the one that the student was trained on.
        labels: CSV or TSV with a column of files (file, image, path …) and one of labels (label, class …), of which a
            photo may have several, between ; or |.
        classes: Text file with a line a class: its name, or label, tab, and name.
        templates: short (7 of CLIP's), clip (its 80 for ImageNet), chinese, none, or a file with a line each, in which
            {} stands for the class.
        out: JSON file for all numbers.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Images or texts per forward pass.
        workers: Processes that decode images.

    Returns:
        The report; its `to_dict()` is what `out` gets: classes, photos, pairings.

    Raises:
        Error: There are no classes, or a student is of another teacher.

    Example:
        >>> report = cd.zero_shot(photos=PHOTOS, classes=CLASSES, teacher=TEACHER)
        >>> report.pairings[0]["agreement"]
        100.0
    """
    from clip_distill.corpus.layout import Sources, scan
    from clip_distill.evaluation.classes import find_classes, templates_of, texts_of
    from clip_distill.evaluation.compare import Device
    from clip_distill.evaluation.loading import load_measured
    from clip_distill.evaluation.zero_shot_report import ZeroShotReport, compare_classes
    from clip_distill.system.files import write_json
    from clip_distill.towers.spec import pick_device

    names: dict[Tower, str | None] = {"image": spelt(image_student), "text": spelt(text_student)}
    students = {tower: (name, *load_measured(name, tower)) for tower, name in names.items() if name is not None}
    teacher = teacher or next((spec.teacher["name"] for _, spec, _, _ in students.values() if spec.teacher), None)
    if teacher is None:
        raise InvalidValue("expected --teacher, or a student that says who taught it, found neither")
    corpus = scan(None, Sources(train_images=[str(spelt(photos))], recursive=True))
    say(*corpus.report.train.skipped_files.lines())
    found = find_classes(corpus.train.require_images(), spelt(labels), spelt(classes))
    texts = texts_of(found.names, templates_of(templates))
    how, skipped = Device(pick_device(device), batch_size, workers), Counter[str]()
    numbers: dict[str, Any] = {
        "photos": str(spelt(photos)),
        "templates": templates,
        **compare_classes(teacher, found, texts, students, how, skipped),
    }
    if out is not None:
        write_json(Path(str(spelt(out))), numbers)
    return ZeroShotReport(numbers, spelt(out))
