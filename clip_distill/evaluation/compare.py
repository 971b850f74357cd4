"""Students against their teacher: in all pairings of towers, or on rows that were held out, where there are no pairs.

Shapes: N_i images, N_t captions, N rows, D embedding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from clip_distill.corpus.layout import Corpus
from clip_distill.evaluation.holdout import hold_out, with_texts
from clip_distill.evaluation.loading import require_taught_by
from clip_distill.evaluation.recall import match_metrics, mean_cosine, neighbour_overlap
from clip_distill.evaluation.retrieval import Benchmark, encode_images, encode_texts, measure_pairings
from clip_distill.pixels.photos import BadImage, read_image
from clip_distill.store.ensemble import open_table
from clip_distill.store.manifest import StoreError, require_same, teacher_fingerprint
from clip_distill.system.errors import InvalidValue
from clip_distill.teachers import load_teacher
from clip_distill.teachers.upright import PREFIX as UPRIGHT
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec, count_parameters

TEACHER_KEYS = ("name", "weights_sha256", "embed_dim", "store", "parameters")
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


def compare_held_out(
    corpus: Corpus,
    store: str,
    share: float,
    students: dict[Tower, tuple[str, TowerSpec, nn.Module, int]],
    how: Device,
) -> dict[str, Any]:
    """Measure each student on the training rows that `fit` held out, against the teacher's embeddings of them.

    Without captions in the data, the text student's are those of the store's made-up texts.
    """
    found: dict[str, Any] = {}
    counts: dict[str, Any] = {"images": 0, "captions": 0}
    info: dict[str, Any] = {}
    for tower, (name, spec, module, parameters) in students.items():
        made_up = tower == "text" and not corpus.train.captions.num_rows
        table = open_table(store, tower, "prompts" if made_up else "train")
        corpus = with_texts(corpus, table.ids) if made_up else corpus
        info = table.manifest.teacher | {"store": store, "parameters": count_described(table.manifest.teacher)}
        require_taught_by(f"student {name}", spec, info)
        _, measure, rows = hold_out(corpus, tower, table, share)
        student = embedded(spec, module, rows if tower == "image" else rows.column("id").to_pylist(), how)
        counts["images" if tower == "image" else "captions"] = len(rows)
        found[tower] = {"name": name, "parameters": parameters, **closeness(student, measure.own)}
    return {
        "data": {
            "split": "held out",
            **counts,
            "images_without_caption": 0,
            "skipped_images": {},
            "dropped_captions": 0,
        },
        "teacher": {key: info[key] for key in TEACHER_KEYS},
        "students": found,
        "captions_unknown_to_teacher": False,
        "pairings": [],
    }


def closeness(student: Tensor, teacher: Tensor | None) -> dict[str, Any]:
    """How near a student is to its teacher on the same inputs [N, D]; nothing where the teacher has not seen them."""
    if teacher is None:
        return {"mean_cosine": None, "neighbour_overlap": None, "match": None}
    sample = slice(None, None, -(-len(student) // NEIGHBOUR_ROWS))
    return {
        "mean_cosine": mean_cosine(student, teacher),
        "neighbour_overlap": None if len(student) < 2 else neighbour_overlap(student[sample], teacher[sample]),
        "match": match_metrics(student[sample], teacher[sample]),
    }


def compare(
    guide: Teacher, students: dict[Tower, tuple[str, TowerSpec, nn.Module, int]], how: Device
) -> dict[str, Any]:
    """Embed the students' side, and measure all pairings and each student's closeness to the teacher."""
    embeddings = {"image": {"teacher": guide.image}, "text": {} if guide.text is None else {"teacher": guide.text}}
    benchmark = guide.benchmark
    found: dict[str, Any] = {}
    for tower, (name, spec, module, parameters) in students.items():
        require_taught_by(f"student {name}", spec, guide.info)
        student = embedded(spec, module, benchmark.images if tower == "image" else benchmark.captions, how)
        teacher = embeddings[tower].get("teacher")
        embeddings[tower]["student"] = student
        found[tower] = {"name": name, "parameters": parameters, **closeness(student, teacher)}
    return {
        "teacher": {key: guide.info[key] for key in TEACHER_KEYS},
        "students": found,
        "captions_unknown_to_teacher": guide.text is None,
        "pairings": measure_pairings(embeddings["image"], embeddings["text"], benchmark.image_of_caption),
    }


def embedded(spec: TowerSpec, module: nn.Module, inputs: pa.Table | list[str], how: Device) -> Tensor:
    """[N, D] of photos, a table of `corpus.layout`, or of captions.

    Raises:
        InvalidValue: A photo of the store can't be read now.
    """
    module = module.to(how.device)
    if not isinstance(inputs, pa.Table):
        return encode_texts(spec, module, inputs, how.device, how.batch_size)
    student, ids = encode_images(spec, module, inputs, how.device, how.batch_size, how.workers)
    if len(ids) != len(inputs):
        missing = sorted(set(inputs.column("id").to_pylist()) - set(ids))
        raise InvalidValue(f"{len(missing)} photos of the store can't be read now, for instance {missing[0]}")
    return student


def count_described(teacher: dict[str, Any]) -> dict[str, int | None]:
    """Parameters of a teacher that is not loaded: its towers are built without memory, from their description.

    None for a tower whose description open_clip doesn't know in full (Hugging Face's, your own, several as one).
    """
    counts: dict[str, int | None] = dict.fromkeys(TOWERS)
    model_cfg = teacher["model_cfg"]
    name = teacher["name"].removeprefix(UPRIGHT)
    foreign = ":" in name and not name.startswith(("local-dir:", "hf-hub:"))
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


def stored_teacher(
    root: str, split: str, images: pa.Table, captions: pa.Table, skipped: Counter[str], foreign: bool
) -> Teacher:
    """Take the teacher's embeddings from a store; of captions it may lack all, where `foreign`, but not some.

    Raises:
        StoreError: The two tables are of different teachers, or lack photos or captions of the split.
    """
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
    info = image_table.manifest.teacher | {"store": root, "parameters": count_described(image_table.manifest.teacher)}
    image = torch.from_numpy(image_table.embeddings(rows[rows >= 0])).float()
    text = None if unknown else torch.from_numpy(text_table.embeddings(caption_rows)).float()
    return Teacher(info, benchmark, image, text)


def _require_unreadable(lacking: pa.Table, folder: str, skipped: Counter[str]) -> None:
    """Photos that a store lacks must be those that can't be read; count them by reason."""
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


def run_teacher(name: str, images: pa.Table, captions: pa.Table, skipped: Counter[str], how: Device) -> Teacher:
    """Run both towers of the teacher, one after the other."""
    spec, module = load_teacher(name, "image")
    parameters = {"image": count_parameters(module)}
    image, ids = encode_images(spec, module.to(how.device), images, how.device, how.batch_size, how.workers, skipped)
    benchmark = Benchmark.of(readable(images, ids), captions)
    spec, module = load_teacher(name, "text")
    parameters["text"] = count_parameters(module)
    text = encode_texts(spec, module.to(how.device), benchmark.captions, how.device, how.batch_size)
    return Teacher(spec.teacher | {"store": None, "parameters": parameters}, benchmark, image, text)


def readable(images: pa.Table, ids: list[str]) -> pa.Table:
    return images.filter(pc.is_in(images.column("id"), value_set=pa.array(ids, pa.large_string())))


def count(benchmark: Benchmark, split: str, skipped: Counter[str]) -> dict[str, Any]:
    with_caption = int((benchmark.image_of_caption.bincount() > 0).sum())
    return {
        "split": split,
        "images": len(benchmark.images),
        "captions": len(benchmark.captions),
        "images_without_caption": len(benchmark.images) - with_caption,
        "skipped_images": dict(skipped),
        "dropped_captions": benchmark.dropped,
    }
