"""What one GPU does: training, embedding, memory, compiling and the quickstart, in minutes, from nothing.

    python benchmarks/gpu.py --out results/gpu
    python benchmarks/gpu.py --out results/gpu --device cpu --tiny --seconds 60

Stages in order of worth, each with a part of the time and what those before it left over; a measurement is skipped,
and told, where the seconds that are left to its stage do not suffice:

1. training: samples a second of the default students, with a teacher of ViT-B/32's size and random weights: the
   original pipeline (teacher at every step, captions of 77 tokens), ours from disk, ours packed or resident, and the
   floor, which is the student alone on tensors in the device's memory;
2. embed: photos and captions a second of teachers of ViT-B/32's and ViT-L/14's size, against the teacher alone;
3. memory: the largest batch under a cap of 8, 12 and 24 GB;
4. compile: the floor of the small students with `--compile`, and with a CUDA graph;
5. quickstart: from nothing to the table.

Photos are the quickstart's scenes, scaled to 500×375 and saved as JPEG. What is measured is written at once, to
OUT/gpu.json, OUT/gpu.md and OUT/gpu.log, and at the end a picture, OUT/gpu.png, where matplotlib is installed. `--tiny`
goes the same ways with models of a layer or two, to see that they work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for what was measured")
    parser.add_argument("--seconds", type=float, default=300, help="for all of it")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="small models and batches")
    parser.add_argument(
        "--stages", nargs="+", type=int, choices=range(1, 6), default=[1, 2, 3, 4, 5], help="some, in this order"
    )
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from clip_distill.system.openmp import wait_shortly

    wait_shortly()  # as every command does, before torch is loaded
    import gpu_compile
    import gpu_embed
    import gpu_memory
    import gpu_train
    from gpu_parts import Check
    from gpu_results import STAGES, Results

    from clip_distill.system.talk import to_console

    to_console()
    given.out.mkdir(parents=True, exist_ok=True)
    results = Results(given.out, given.seconds, given.device)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        check = Check(Path(folder), given.device, given.tiny, results)
        stages = (gpu_train.stage, gpu_embed.stage, gpu_memory.stage, gpu_compile.stage, gpu_embed.quickstart)
        names = [list(STAGES)[number - 1] for number in given.stages]
        for place, number in enumerate(given.stages):
            results.keep_for(names[place + 1 :], names)
            stages[number - 1](check)
    results.finish()


if __name__ == "__main__":
    main()
