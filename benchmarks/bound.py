"""What no training step can beat on this machine: the time of its matrix products and convolutions alone.

    python benchmarks/bound.py --data ../shared/flickr8k

Counts the floating-point operations of the default students' forward and backward passes (torch's flop counter), and
measures how many a second the machine's own matrix product does, in the shape that most of them have. Samples per
second at most = the second by the first. Norms, activations, softmax, casts and the optimiser are not in it, so even
a perfect step stays below.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours

from parts import save_big_teacher

from clip_distill.corpus.layout import scan
from clip_distill.students import make_student
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec

RUNS = 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A student, a batch for it, and its largest matrix product: [rows, width] by [width, 4 · width]."""

    tower: str
    student: nn.Module
    inputs: Tensor
    rows: int
    width: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, for the lengths of its captions")
    parser.add_argument("--image_batch", type=int, default=64)
    parser.add_argument("--text_batch", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = dict(load_teacher(save_big_teacher(Path(folder) / "teacher"), "text")[0].teacher)
    print("| tower | MFLOP a sample | dtype | GFLOP/s of the matrix product | samples/s at most |")
    print("| --- | ---: | --- | ---: | ---: |")
    for case in (image_case(teacher, given.image_batch), text_case(teacher, given.data, given.text_batch)):
        operations = flops(case) / len(case.inputs)
        for name, dtype in DTYPES.items():
            rate = product_rate(case, dtype)
            print(f"| {case.tower} | {operations / 1e6:,.1f} | {name} | {rate / 1e9:,.0f} | {rate / operations:,.0f} |")


def image_case(teacher: dict[str, Any], batch: int) -> Case:
    _, student = make_student("image", None, teacher, {})
    return Case("image", student, torch.randn(batch, 3, 224, 224), batch * 50, 576)


def text_case(teacher: dict[str, Any], data: str, batch: int) -> Case:
    """The captions of median length, as `fit` batches them: alike in length, cut to the longest."""
    spec, student = make_student("text", None, teacher, {})
    tokenizer = TokenizerSpec(**spec.tokenizer)
    texts = scan(data).train.require_captions().column("text").unique().to_pylist()
    ragged = tokenize(tokenizer, texts)
    order = ragged.lengths.argsort(kind="stable")
    middle = len(order) // 2
    tokens = ragged.take(order[middle : middle + batch])
    return Case("text", student, tokens.pad(tokenizer.pad_id), len(tokens.flat), 128)


def flops(case: Case) -> int:
    """Of a forward and a backward pass over the batch."""
    with FlopCounterMode(display=False) as counter:
        case.student(case.inputs).square().sum().backward()
    return int(counter.get_total_flops())


def product_rate(case: Case, dtype: torch.dtype) -> float:
    """Operations per second of the student's largest matrix product, the best of some runs."""
    left, right = torch.randn(case.rows, case.width, dtype=dtype), torch.randn(case.width, 4 * case.width, dtype=dtype)
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * case.rows * case.width * 4 * case.width / best


if __name__ == "__main__":
    main()
