"""Size, fidelity and speed of a student's files in every runtime, beside the teacher in PyTorch.

    python benchmarks/exports.py --image_student runs/image --text_student runs/text \\
        --calibrate ../shared/flickr8k --out results/exports [--files onnx:fp32 onnx:int8 openvino:int8 …]

Each TARGET:WEIGHTS is exported by the verb, whose own comparison gives the cosines (an export that is there is kept),
then run on photos and captions of the data at batch 1 and 32; files that take one sample a time are given 32 one after
the other. Every runtime uses the cores as it does by itself. What its package is missing for is left out, and said.
OUT/exports.json keeps the rows of earlier calls, so that a runtime with an environment of its own adds its rows;
OUT/exports.md is the table: milliseconds a sample, and how many times as fast as the teacher.
Shapes: B batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clip_distill as cd
from clip_distill.corpus.layout import scan
from clip_distill.evaluation.loading import load_student
from clip_distill.exports.file_tower import load_file_tower
from clip_distill.exports.program import fed_photos, render, text_probes
from clip_distill.exports.targets.onnx import ONNX
from clip_distill.runtimes import RUNTIMES
from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.files import read_json, write_json
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import TOWERS, Tower, TowerSpec

BATCHES = (1, 32)
SECONDS = 3.0  # of each measurement, and at least MINIMUM passes
MINIMUM = 5
FILES = [f"{name}:{weights}" for name, row in RUNTIMES.items() if row.reader for weights in row.weights]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_student", type=Path, required=True)
    parser.add_argument("--text_student", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, required=True, help="data folder")
    parser.add_argument("--out", type=Path, default=Path("results/exports"))
    parser.add_argument("--files", nargs="+", default=FILES, help="TARGET:WEIGHTS")
    given = parser.parse_args()
    rows: dict[str, Any] = read_json(given.out / "exports.json") if (given.out / "exports.json").is_file() else {}
    inputs = {tower: samples(tower, given) for tower in TOWERS}
    for name, tower_of in (("teacher, eager", of_teacher), ("student, eager", of_student)):
        for tower in TOWERS:
            spec, module = tower_of(tower, given)
            rows.setdefault(name, {})[tower] = measured(module.eval(), inputs[tower](spec), parameters_mb(module))
    for file in given.files:
        try:
            rows[file] = of_file(file, given, inputs)
        except (MissingPackage, InvalidValue) as error:
            print(f"{file}: left out: {str(error).splitlines()[0]}")
        write_json(given.out / "exports.json", rows)
        (given.out / "exports.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def of_teacher(tower: Tower, given: argparse.Namespace) -> tuple[TowerSpec, torch.nn.Module]:
    spec, _ = of_student(tower, given)
    return load_teacher(spec.teacher["name"], tower)


def of_student(tower: Tower, given: argparse.Namespace) -> tuple[TowerSpec, torch.nn.Module]:
    return load_student(str(getattr(given, f"{tower}_student")), tower)


def parameters_mb(module: torch.nn.Module) -> float:
    return sum(each.numel() * each.element_size() for each in module.state_dict().values()) / 1e6


def samples(tower: Tower, given: argparse.Namespace) -> Callable[[TowerSpec], torch.Tensor]:
    """Real inputs, [32, …]: of a tower's own size and tokens, at its whole context length."""
    split = scan(str(given.calibrate)).val
    photos, captions = split.images.to_pylist()[: max(BATCHES)], split.captions.column("text").to_pylist()

    def of(spec: TowerSpec) -> torch.Tensor:
        if tower == "text":
            return text_probes(spec, ONNX, captions)[0][: max(BATCHES)]
        return torch.from_numpy(fed_photos(spec, ONNX, render(spec, ONNX, photos)))

    return of


def of_file(file: str, given: argparse.Namespace, inputs: dict[Tower, Any]) -> dict[str, Any]:
    """Export, where it isn't there, and measure both towers."""
    target, _, weights = file.partition(":")
    folder = given.out / file.replace(":", "-")
    if not folder.is_dir():
        students = {"image_student": given.image_student, "text_student": given.text_student}
        cd.export(**students, to=target, weights=weights, calibrate=given.calibrate, out=folder)  # type: ignore[arg-type]
    record, row = read_json(folder / "export.json"), {}
    described = read_json(folder / "towers.json")
    for tower in TOWERS:
        spec, module, _ = load_file_tower(folder, tower)
        stem = Path(described[tower]["file"]).stem
        size = sum(path.stat().st_size for path in folder.glob(f"{stem}.*")) / 1e6
        row[tower] = measured(module, inputs[tower](spec), size)
        row[tower]["cosine"] = record["towers"][tower]["mean_cosine_to_torch"]
        row[tower]["recall"] = (record["recall"].get(tower) or {}).get("t2i_r10")
    return row


@torch.inference_mode()
def measured(module: torch.nn.Module, inputs: torch.Tensor, megabytes: float) -> dict[str, Any]:
    """Milliseconds a sample at each batch size, the median of several passes."""
    found: dict[str, Any] = {"mb": round(megabytes, 2)}
    for batch in BATCHES:
        some = inputs[:batch]
        module(some)
        seconds: list[float] = []
        began = time.perf_counter()
        while len(seconds) < MINIMUM or time.perf_counter() - began < SECONDS:
            start = time.perf_counter()
            module(some)
            seconds.append(time.perf_counter() - start)
        found[f"ms_{batch}"] = 1000 * float(np.median(seconds)) / batch
    return found


def table(rows: dict[str, Any]) -> str:
    """A row a file and tower."""
    titles = ["tower", "file", "MB", "mean cosine", "R@10"]
    titles += [title for batch in BATCHES for title in (f"ms, batch {batch}", "times the teacher")]
    lines = [f"| {' | '.join(titles)} |", "| --- | --- |" + " ---: |" * (len(titles) - 2)]
    for tower in TOWERS:
        for name, row in rows.items():
            mine, teacher = row[tower], rows["teacher, eager"][tower]
            cells = [tower, name, f"{mine['mb']:.2f}", *(shown(mine.get(key)) for key in ("cosine", "recall"))]
            for batch in BATCHES:
                key = f"ms_{batch}"
                cells += [f"{mine[key]:.2f}", f"{teacher[key] / mine[key]:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value <= 1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
