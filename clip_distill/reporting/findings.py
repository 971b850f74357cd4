"""What a report says, measured: plain data, which the page shows and a JSON file keeps.

Shapes: N photos, N_t captions, D embedding.
"""

from __future__ import annotations

import csv
import itertools
import platform
import statistics
import timeit
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.evaluation.compare import Device, Teacher, closeness, embedded
from clip_distill.evaluation.loading import load_measured, require_taught_by
from clip_distill.evaluation.recall import retrieval_ranks
from clip_distill.exports.graph import sides
from clip_distill.reporting.leaks import without
from clip_distill.reporting.statistics import changed_most, histogram, hits_of, intervals
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec

QUERIES = 5  # that lost most, and that gained most
FOUND = 3  # photos of each
TYPICAL = "two dogs run across a field of tall green grass"  # a caption of usual length
WARM, TIMED = 5, 25  # passes
HEAT = 12  # photos, and their captions, of the map of similarities
PACKAGES = ("clip-distill", "torch", "open_clip_torch", "lightning")


@dataclass(frozen=True)
class Side:
    """Embeddings of photos [N, D] and captions [N_t, D], of unit length."""

    image: Tensor
    text: Tensor

    @staticmethod
    def of(image: Tensor, text: Tensor) -> Side:
        return Side(F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1))


def measure_run(
    name: str, tower: Tower, guide: Teacher, how: Device, leaked: Sequence[int] = ()
) -> tuple[dict[str, Any], Side]:
    """All that is said of one student, with the teacher's other tower beside it.

    Args:
        name: Its run's folder, or an export's.
        tower: Which it is.
        guide: The teacher's embeddings of the validation photos and captions.
        how: Where it runs.
        leaked: Rows of photos that training has nearly the same of.

    Raises:
        InvalidValue: It is of another teacher.
    """
    assert guide.text is not None
    spec, module, parameters = load_measured(name, tower)
    require_taught_by(f"student {name}", spec, guide.info)
    benchmark = guide.benchmark
    own = embedded(spec, module.eval(), benchmark.images if tower == "image" else benchmark.captions, how)
    teacher = Side.of(guide.image, guide.text)
    student = Side.of(*((own, guide.text) if tower == "image" else (guide.image, own)))
    theirs = guide.image if tower == "image" else guide.text
    found = compared(teacher, student, benchmark.image_of_caption, leaked)
    facts = {
        "run": name,
        "tower": tower,
        "parameters": parameters,
        "teacher_parameters": guide.info["parameters"][tower],
    }
    near = closeness(own, theirs)
    cosines = F.cosine_similarity(own.float(), theirs.float())
    facts |= {"milliseconds": latency(spec, module, how.device)}
    facts |= {"cosine": near["mean_cosine"], "neighbours": 100 * near["neighbour_overlap"]}
    return facts | found | {"cosines": histogram(cosines)} | run_facts(Path(name)), student


def latency(spec: TowerSpec, module: nn.Module, device: torch.device) -> float:
    """Median milliseconds of one photo, or one caption; decoding not counted."""
    if spec.tower == "image":
        inputs = torch.zeros(1, 3, *sides(spec.preprocess))
    else:
        tokenizer = TokenizerSpec(**spec.tokenizer)
        width = None if spec.causal else tokenizer.context_length
        inputs = tokenize(tokenizer, [TYPICAL]).pad(tokenizer.pad_id, width)
    inputs = inputs.to(device)
    with torch.inference_mode():
        seconds = timeit.repeat(lambda: module(inputs).cpu(), number=1, repeat=WARM + TIMED)
    return 1000 * statistics.median(seconds[WARM:])


def compared(teacher: Side, student: Side, image_of_caption: Tensor, leaked: Sequence[int] = ()) -> dict[str, Any]:
    """Recalls with intervals, the same without what leaked, share kept, and the queries that changed most."""
    ranks = [retrieval_ranks(side.image, side.text, image_of_caption) for side in (teacher, student)]
    photos = len(teacher.image)
    theirs, own = (hits_of(*each, image_of_caption, photos) for each in ranks)
    recall = intervals(theirs, own)
    means = recall["mean_recall"]
    lost, gained = changed_most(ranks[0][0], ranks[1][0], QUERIES)
    some_left = 0 < len(leaked) < photos
    return {
        "recall": recall,
        "recall_without_leaks": intervals(without(theirs, leaked), without(own, leaked)) if some_left else None,
        "kept": 100 * means["student"][0] / means["teacher"][0] if means["teacher"][0] else None,
        "lost": [query(row, ranks, (teacher, student), image_of_caption) for row in lost],
        "gained": [query(row, ranks, (teacher, student), image_of_caption) for row in gained],
    }


def query(row: int, ranks: Any, sides: tuple[Side, Side], image_of_caption: Tensor) -> dict[str, Any]:
    """A caption's row, the row of its photo, its rank, and the rows of the photos found first, by each."""
    found = {
        who: {
            "rank": int(ranks[place][0][row]),
            "photos": (side.text[row] @ side.image.T).topk(min(FOUND, len(side.image))).indices.tolist(),
        }
        for place, (who, side) in enumerate(zip(("teacher", "student"), sides, strict=True))
    }
    return {"caption": row, "photo": int(image_of_caption[row]), **found}


def heat(teacher: Side, student: Side, image_of_caption: Tensor) -> dict[str, Any]:
    """Cosines of some photos with the first caption of each, by teacher and student."""
    owners = image_of_caption.tolist()
    firsts = {owner: row for row, owner in reversed(list(enumerate(owners)))}
    step = max(1, len(firsts) // HEAT)
    photos = sorted(firsts)[::step][:HEAT]
    captions = [firsts[photo] for photo in photos]
    cells = {
        who: (side.text[captions] @ side.image[photos].T).tolist()
        for who, side in (("teacher", teacher), ("student", student))
    }
    return {"photos": photos, "captions": captions, **cells}


def run_facts(folder: Path) -> dict[str, Any]:
    """What a run's folder says of itself: recipe, curves, bytes, seconds."""
    facts: dict[str, Any] = {}
    if (folder / "recipe.yaml").is_file():
        facts["recipe"] = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    if (folder / "logs/metrics.csv").is_file():
        with open(folder / "logs/metrics.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        facts |= {"curves": curves(rows), "seconds": seconds_of(rows)}
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    return facts | {"bytes": sum(path.stat().st_size for path in files)}


def seconds_of(rows: list[dict[str, str]]) -> float | None:
    """Seconds of training, all parts of a run that was interrupted; None where its logs don't say."""
    found = [float(row["train/seconds"]) for row in rows if row.get("train/seconds")]
    ends = [value for value, following in itertools.pairwise([*found, 0.0]) if following < value]
    return sum(ends) if found else None


def curves(rows: list[dict[str, str]]) -> dict[str, list[list[float]]]:
    """Name → [step, value] pairs of loss, learning rate and what was validated, as Lightning's CSV has them."""
    wanted = {"loss": "train/loss", "mean recall": "val/mean_recall", "cosine": "val/cosine"}
    rate = next((name for name in (rows[0] if rows else {}) if name.startswith("lr-")), None)
    wanted |= {"learning rate": rate} if rate else {}
    found = {
        title: [[float(row["step"]), float(row[name])] for row in rows if row.get(name) and row.get("step")]
        for title, name in wanted.items()
    }
    return {title: points for title, points in found.items() if points}


def shared_facts(guide: Teacher, data: str | None, split: str, skipped: Counter[str]) -> dict[str, Any]:
    """What all runs of a report have in common."""
    keys = ("name", "weights_sha256", "embed_dim", "store")
    return {
        "teacher": {key: guide.info.get(key) for key in keys},
        "data": {"folder": data, "split": split, "photos": len(guide.benchmark.images)}
        | {"captions": len(guide.benchmark.captions), "skipped": dict(skipped)},
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads",
    }


def both(sides: Mapping[Tower, Side], guide: Teacher, leaked: Sequence[int] = ()) -> dict[str, Any]:
    """Both students with each other, beside the teacher."""
    assert guide.text is not None
    teacher = Side.of(guide.image, guide.text)
    pair = Side(sides["image"].image, sides["text"].text)
    return compared(teacher, pair, guide.benchmark.image_of_caption, leaked)
