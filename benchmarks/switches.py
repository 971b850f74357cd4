"""What a switch of training costs: CPU seconds and peak memory of a step; and how good mixed targets are.

    OMP_NUM_THREADS=1 python benchmarks/switches.py step --tower image --batch 32 --switch freeze:2
    OMP_NUM_THREADS=1 python benchmarks/switches.py step --tower text --batch 256 --switch compile
    python benchmarks/switches.py mixup --teacher local-dir:../shared/teacher --data ../shared/flickr8k

CPU time is what a step takes whatever runs beside it; the least of three rounds of four steps. A process measures one
switch, since peaks and compiled code outlive a round. Peaks are Linux's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_distill.batches.mixup import mix_embeddings, mix_pixels
from clip_distill.corpus.layout import scan
from clip_distill.pixels.photos import read_image
from clip_distill.pixels.views import Views, normalise
from clip_distill.students import make_student
from clip_distill.students.layers import freeze, recompute
from clip_distill.system.allocator import forget_peak, most_resident_bytes
from clip_distill.teachers import load_teacher
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower

D, END = 256, 49407
LENGTHS = (9, 11, 13, 17)  # tokens of captions, in turn
STUDENTS: dict[Tower, dict[str, Any]] = {
    "image": {"model": "tf_efficientnet_lite0", "depths": [1, 2, 2, 3, 3, 2], "input_resolution": 144},
    "text": {},
}
ROUNDS, STEPS = 3, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step", help="one switch, on one student")
    step.add_argument("--tower", choices=["image", "text"], required=True)
    step.add_argument("--batch", type=int, default=32)
    step.add_argument("--switch", default="none", help="none, freeze:N, checkpointing or compile")
    mixup = verbs.add_parser("mixup", help="mixed targets against the teacher's embedding of mixed pixels")
    mixup.add_argument("--teacher", required=True)
    mixup.add_argument("--data", required=True)
    mixup.add_argument("--photos", type=int, default=256)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.verb == "step":
        measure_step(arguments.tower, arguments.batch, arguments.switch)
    else:
        measure_mixup(arguments.teacher, arguments.data, arguments.photos)


def measure_step(tower: Tower, size: int, switch: str) -> None:
    """CPU seconds and peak memory of a step, and seconds until the first ones are done."""
    run = steps(tower, size, switch)
    forget_peak()
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    run()
    start = time.perf_counter() - began
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        run()
        seconds.append((time.process_time() - began) / STEPS)
    peak = most_resident_bytes()
    print(
        f"{tower}, batch {size}, {switch}: {min(seconds):.3f} CPU seconds a step, peak {(peak - before) / 1e6:,.0f} MB "
        f"above the start, {start:.1f} s until step {STEPS}"
    )


def steps(tower: Tower, size: int, switch: str) -> Callable[[], None]:
    """`STEPS` steps, to be run again and again, each forward, backward and AdamW.

    Of the image student of the recipe flickr8k_image, or of the default for text.
    """
    student = prepared(tower, switch)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], fused=True)
    batches, target = [inputs(tower, size, number) for number in range(STEPS)], torch.randn(size, D)

    def run() -> None:
        for batch in batches:
            loss = 1 - F.cosine_similarity(student(batch), target).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def prepared(tower: Tower, switch: str) -> nn.Module:
    """A student of a 256-dimensional teacher, with one switch on."""
    teacher = {
        "embed_dim": D,
        "model_cfg": {"text_cfg": {}},
        "preprocess": {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3},
        "tokenizer": TokenizerSpec("clip", 77, END + 1).as_dict(),
    }
    _, student = make_student(tower, "timm_cut" if tower == "image" else None, teacher, STUDENTS[tower])
    student.to(memory_format=torch.channels_last)
    name, _, value = switch.partition(":")
    if name == "freeze":
        freeze(student, int(value))
    elif name == "checkpointing":
        recompute(student)
    elif name == "compile":
        student.compile(dynamic=True if tower == "text" else None)
    elif name != "none":
        raise SystemExit(f"expected --switch none, freeze:N, checkpointing or compile, found {switch}")
    return student


def inputs(tower: Tower, size: int, number: int) -> Tensor:
    """Random pixels, or random tokens that end as captions do."""
    if tower == "image":
        side = STUDENTS["image"]["input_resolution"]
        return torch.randn(size, 3, side, side).to(memory_format=torch.channels_last)
    tokens = torch.randint(1, 40_000, (size, LENGTHS[number % len(LENGTHS)]))
    tokens[:, -1] = END
    return tokens


@torch.inference_mode()
def measure_mixup(name: str, data: str, photos: int) -> None:
    """Cosines and lengths of what could stand for the teacher's embedding of mixed pixels."""
    spec, teacher = load_teacher(name, "image")
    views = Views(spec.preprocess)
    paths = scan(data).train.require_images().column("path").to_pylist()[:photos]
    pixels = torch.stack([views(read_image(path), path, 0) for path in paths])
    partner = torch.randperm(len(pixels))
    plain = teacher(normalise(pixels, spec.preprocess))
    for share in (0.9, 0.7, 0.5):
        theirs = teacher(normalise(mix_pixels(pixels, partner, share), spec.preprocess))
        targets = {
            "unmixed": plain,
            "mixed vectors": plain.lerp(plain[partner], 1 - share),
            "directions and lengths": mix_embeddings(plain, partner, share),
        }
        print(f"λ {share}: the teacher's length {theirs.norm(dim=-1).mean():.1f}")
        for kind, target in targets.items():
            cosine = F.cosine_similarity(target, theirs).mean()
            print(f"  {kind:24} cosine {cosine:.3f}, length {target.norm(dim=-1).mean():.1f}")


if __name__ == "__main__":
    main()
