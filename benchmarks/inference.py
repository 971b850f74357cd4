"""How much faster an exported student is than a teacher of ViT-B/32's size in torch eager.

    python benchmarks/inference.py --out inference                     # the default students, random weights
    python benchmarks/inference.py --out inference --image_student runs/image --text_student runs/text

The teacher has random weights, which cost as much as any; nothing is downloaded. The rest is `clip-distill benchmark`,
without torch.compile unless asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clip_distill.benchmarking import chart
from clip_distill.benchmarking.inputs import Inputs
from clip_distill.benchmarking.measure import RUNTIMES, Settings, Subject, measure
from clip_distill.benchmarking.report import BenchmarkReport, add_speedups, machine
from clip_distill.students.image import vit
from clip_distill.students.text import transformer
from clip_distill.system.files import write_json
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec, load_tower

PREPROCESS = {"size": 224, "mode": "RGB", "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
PREPROCESS |= {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
CFG: dict[Tower, dict[str, Any]] = {  # open_clip's ViT-B-32
    "image": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
TEACHER = {
    "name": "ViT-B/32-size",
    "weights_sha256": "",
    "embed_dim": 512,
    "logit_scale": 100.0,
    "model_cfg": {"quick_gelu": False, "vision_cfg": CFG["image"], "text_cfg": CFG["text"]},
    "preprocess": PREPROCESS,
    "tokenizer": TokenizerSpec("clip", 77, 49408).as_dict(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON and the chart")
    parser.add_argument("--image_student", help="run folder; by default the default student, with random weights")
    parser.add_argument("--text_student", help="likewise")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=["eager", "onnx", "onnx-int8"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=50)
    given = parser.parse_args()
    torch.manual_seed(0)
    settings = Settings(
        runtimes=tuple(given.runtimes),
        batch_sizes=tuple(given.batch_sizes),
        threads=given.threads,
        repeats=given.repeats,
    )
    report: dict[str, Any] = {"machine": machine(), "settings": dataclasses.asdict(settings), "variants": []}
    for tower, folder in (("image", given.image_student), ("text", given.text_student)):
        report["variants"] += measure(subjects(tower, folder), Inputs(None, max(32, *given.batch_sizes)), settings)
    add_speedups(report["variants"])
    BenchmarkReport(report).show()
    write_json(given.out / "inference.json", report)
    if chart.available():
        chart.draw(report, given.out / "inference.png")


def subjects(tower: Tower, student: str | None) -> Iterator[Subject]:
    """The teacher's tower, then the student's, in eval mode."""
    own = {"preprocess": PREPROCESS} if tower == "image" else {"tokenizer": TEACHER["tokenizer"]}
    spec = TowerSpec(tower, 512, CFG[tower], teacher=TEACHER, **own)
    yield Subject("teacher", TEACHER["name"], spec, spec.build().eval())
    if student:
        yield Subject("student", student, *load_tower(student))
    else:
        spec, module = {"image": vit, "text": transformer}[tower](TEACHER)
        yield Subject("student", "default", spec, module.eval())


if __name__ == "__main__":
    main()
