"""`clip-distill evaluate`: retrieval of teacher and students, in all pairings of their towers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.system.arguments import Place, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor, nn

    from clip_distill.evaluation.report import EvaluationReport
    from clip_distill.evaluation.retrieval import Benchmark
    from clip_distill.towers.spec import Tower, TowerSpec

EXAMPLES = """\
  # a text student against the teacher, whose embeddings come from the store
  clip-distill evaluate --data DATA --store stores/b32 --text_student runs/text
  # both students: four pairings, with every number in a JSON file
  clip-distill evaluate --data DATA --store stores/b32 --image_student runs/image --text_student runs/text \\
    --out results.json
  # the int8 files that are shipped, in the students' place
  clip-distill export --image_student runs/image --text_student runs/text --format onnx-int8 --out shipped
  clip-distill evaluate --data DATA --store stores/b32 --image_student shipped --text_student shipped
  # an exported folder, or any open_clip model of the same width, in a student's place
  clip-distill evaluate --data DATA --store stores/b32 --image_student local-dir:exported
  # a student of another language than the teacher's, on captions of its own
  clip-distill evaluate --data DATA --sources.val_captions zh.json --store stores/b32 --text_student runs/chinese
  # a teacher alone, without a store
  clip-distill evaluate --data DATA --teacher ViT-B-32/openai"""

NEIGHBOUR_ROWS = 5000  # neighbours are sought among as many evenly spaced rows, since all pairs of 25,000 take a minute


@dataclass(frozen=True)
class Device:
    """Where and how towers run."""

    device: torch.device
    batch_size: int
    workers: int


@dataclass(frozen=True)
class Teacher:
    """The teacher's embeddings of a benchmark: images [N_i, D], captions [N_t, D], float32; None of captions that it
    was never shown, in a language that it does not know."""

    info: dict[str, Any]
    benchmark: Benchmark
    image: Tensor
    text: Tensor | None


def evaluate(
    data: Place | None = None,
    store: Place | None = None,
    teacher: str | None = None,
    image_student: Place | None = None,
    text_student: Place | None = None,
    split: Literal["train", "val"] = "val",
    out: Place | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 1,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> EvaluationReport:
    """Measure retrieval over a whole split, text→image and image→text, for all pairings of teacher and students.

    Args:
        data: Folder in the documented layout (image/, COCO/val2017/, COCO/annotations/, CC/).
        store: What `embed` wrote: the teacher's embeddings are read from it, and the teacher is not loaded.
        teacher: Instead of a store, the teacher's name; both its towers are run here.
        image_student: Run folder of an image student, a folder of exported ONNX files, or any teacher's name
            (local-dir:exported).
        text_student: Run folder of a text student, a folder of exported ONNX files, or any teacher's name.
        split: Which part of the data.
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
    from clip_distill.evaluation.loading import load_measured
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
    images, captions = part.require_images(), part.require_captions()
    skipped: Counter[str] = Counter()
    how = Device(pick_device(device), batch_size, workers)
    if store is not None:
        guide = _stored_teacher(store, split, images, captions, skipped, text_student is not None)
    else:
        assert teacher is not None
        guide = _run_teacher(teacher, images, captions, skipped, how)
    report = {"data": _count(guide.benchmark, split, skipped), **_compare(guide, students, how)}
    if out is not None:
        write_json(Path(out), report)
    return EvaluationReport(report, None if out is None else str(out))


def _stored_teacher(
    root: str, split: str, images: pa.Table, captions: pa.Table, skipped: Counter[str], foreign: bool
) -> Teacher:
    """Take the teacher's embeddings from a store; of captions it may lack all, where `foreign`, but not some.

    Raises:
        StoreError: The two tables are of different teachers, or lack photos or captions of the split.
    """
    import pyarrow as pa
    import torch

    from clip_distill.evaluation.retrieval import Benchmark
    from clip_distill.store.ensemble import open_table
    from clip_distill.store.table import StoreError, require_same, teacher_fingerprint

    image_table, text_table = (open_table(root, tower, split) for tower in ("image", "text"))
    expected, found = (teacher_fingerprint(table.manifest.teacher) for table in (image_table, text_table))
    require_same(
        str(text_table.folder), expected, found, "Both towers must be of one teacher: embed one of them again."
    )
    rows = image_table.find(images.column("id"))
    _require_unreadable(images.filter(pa.array(rows < 0)), str(image_table.folder), skipped)
    benchmark = Benchmark.of(images.filter(pa.array(rows >= 0)), captions)
    caption_rows = text_table.find(benchmark.captions)
    unknown = foreign and bool((caption_rows < 0).all())
    if (caption_rows < 0).any() and not unknown:
        lacking = [text for text, row in zip(benchmark.captions, caption_rows, strict=True) if row < 0]
        raise StoreError(
            f"{text_table.folder}: expected all captions of the {split} split, found {len(lacking)} of "
            f"{len(benchmark.captions)} missing, for instance {lacking[0]!r}. Run `clip-distill embed` with this data."
        )
    info = image_table.manifest.teacher | {"store": root, "parameters": _count_described(image_table.manifest.teacher)}
    image = torch.from_numpy(image_table.embeddings(rows[rows >= 0])).float()
    text = None if unknown else torch.from_numpy(text_table.embeddings(caption_rows)).float()
    return Teacher(info, benchmark, image, text)


def _require_unreadable(lacking: pa.Table, folder: str, skipped: Counter[str]) -> None:
    """Photos that a store lacks must be those that can't be read; count them by reason."""
    from clip_distill.pixels.photos import BadImage, read_image
    from clip_distill.store.table import StoreError

    for row in lacking.to_pylist():
        try:
            read_image(row["path"], row["offset"], row["size"])
        except BadImage as error:
            skipped[str(error)] += 1
            continue
        raise StoreError(
            f"{folder}: expected every photo of the split, found {len(lacking)} missing, for instance {row['id']}. "
            "Run `clip-distill embed` with this data."
        )


def _run_teacher(name: str, images: pa.Table, captions: pa.Table, skipped: Counter[str], how: Device) -> Teacher:
    """Run both towers of the teacher, one after the other."""
    from clip_distill.evaluation.retrieval import Benchmark, encode_images, encode_texts
    from clip_distill.teachers import load_teacher
    from clip_distill.towers.spec import count_parameters

    spec, module = load_teacher(name, "image")
    parameters = {"image": count_parameters(module)}
    image, ids = encode_images(spec, module.to(how.device), images, how.device, how.batch_size, how.workers, skipped)
    benchmark = Benchmark.of(_only(images, ids), captions)
    spec, module = load_teacher(name, "text")
    parameters["text"] = count_parameters(module)
    text = encode_texts(spec, module.to(how.device), benchmark.captions, how.device, how.batch_size)
    return Teacher(spec.teacher | {"store": None, "parameters": parameters}, benchmark, image, text)


def _only(images: pa.Table, ids: list[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    return images.filter(pc.is_in(images.column("id"), value_set=pa.array(ids, pa.large_string())))


def _compare(
    guide: Teacher, students: dict[Tower, tuple[str, TowerSpec, nn.Module, int]], how: Device
) -> dict[str, Any]:
    """Embed the students' side, and measure all pairings and each student's closeness to the teacher."""
    from clip_distill.evaluation.loading import require_taught_by
    from clip_distill.evaluation.recall import mean_cosine, neighbour_overlap
    from clip_distill.evaluation.retrieval import encode_images, encode_texts, measure_pairings

    embeddings = {"image": {"teacher": guide.image}, "text": {} if guide.text is None else {"teacher": guide.text}}
    benchmark = guide.benchmark
    found: dict[str, Any] = {}
    for tower, (name, spec, module, parameters) in students.items():
        require_taught_by(f"student {name}", spec, guide.info)
        module = module.to(how.device)
        if tower == "image":
            student, ids = encode_images(spec, module, benchmark.images, how.device, how.batch_size, how.workers)
            if len(ids) != len(benchmark.images):
                missing = sorted(set(benchmark.images.column("id").to_pylist()) - set(ids))
                raise InvalidValue(f"{len(missing)} photos of the store can't be read now, for instance {missing[0]}")
        else:
            student = encode_texts(spec, module, benchmark.captions, how.device, how.batch_size)
        teacher = embeddings[tower].get("teacher")
        sample = slice(None, None, -(-len(student) // NEIGHBOUR_ROWS))
        embeddings[tower]["student"] = student
        found[tower] = {
            "name": name,
            "parameters": parameters,
            "mean_cosine": None if teacher is None else mean_cosine(student, teacher),
            "neighbour_overlap": None if teacher is None else neighbour_overlap(student[sample], teacher[sample]),
        }
    keys = ("name", "weights_sha256", "embed_dim", "store", "parameters")
    return {
        "teacher": {key: guide.info[key] for key in keys},
        "students": found,
        "captions_unknown_to_teacher": guide.text is None,
        "pairings": measure_pairings(embeddings["image"], embeddings["text"], benchmark.image_of_caption),
    }


def _count_described(teacher: dict[str, Any]) -> dict[str, int | None]:
    """Parameters of a teacher that is not loaded: its towers are built without memory, from their description.

    None for a tower whose description open_clip doesn't know in full (Hugging Face's, your own, several as one).
    """
    import torch

    from clip_distill.towers.spec import TOWERS, TowerSpec, count_parameters

    counts: dict[str, int | None] = dict.fromkeys(TOWERS)
    model_cfg = teacher["model_cfg"]
    foreign = ":" in teacher["name"] and not teacher["name"].startswith(("local-dir:", "hf-hub:"))
    if foreign or "ensemble" in teacher:
        return counts
    for tower in TOWERS:
        cfg = model_cfg["vision_cfg" if tower == "image" else "text_cfg"]
        if "hf_model_name" not in cfg:
            cfg = cfg | ({"timm_model_pretrained": False} if tower == "image" else {})
            with torch.device("meta"):
                spec = TowerSpec(tower, teacher["embed_dim"], cfg, model_cfg["quick_gelu"])
                counts[tower] = count_parameters(spec.build())
    return counts


def _count(benchmark: Benchmark, split: str, skipped: Counter[str]) -> dict[str, Any]:
    with_caption = int((benchmark.image_of_caption.bincount() > 0).sum())
    return {
        "split": split,
        "images": len(benchmark.images),
        "captions": len(benchmark.captions),
        "images_without_caption": len(benchmark.images) - with_caption,
        "skipped_images": dict(skipped),
        "dropped_captions": benchmark.dropped,
    }
