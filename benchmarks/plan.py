"""`clip-distill plan` against what embed and one epoch of fit then really take, on a part of a data folder.

    python benchmarks/plan.py --data ../shared/flickr8k --teacher local-dir:../shared/teacher --images 500

Both run in processes of their own, watched from outside. A ratio above 1 says that the plan asked for too much.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from parts import make_part

from clip_distill.planning.report import duration, size
from clip_distill.system.files import read_json
from clip_distill.system.processes import PeakMemory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for `clip-distill embed`")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--tower", choices=["image", "text"], default="text", help="whose student is trained")
    parser.add_argument("--images", type=int, default=500, help="training photos; a quarter as many to validate")
    parser.add_argument("--embed", default="", help="more options of embed, in one string")
    parser.add_argument("--fit", default="", help="more options of fit, in one string")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_part(given.data, root / "data", given.images)
        run(root, given.teacher, given.tower, shlex.split(given.embed), shlex.split(given.fit))


def run(root: Path, teacher: str, tower: str, embed_options: list[str], fit_options: list[str]) -> None:
    """Plan, do, compare."""
    data, store, out = (str(root / name) for name in ("data", "store", "run"))
    fit_flags = ["--data", data, "--tower", tower, "--trainer.max_epochs", "1", *fit_options]
    embed_flags = ["--teacher", teacher, *embed_options]
    seconds, _ = watch("plan", *fit_flags, *embed_flags, "--out", str(root / "plan.json"))
    print(f"the plan itself took {duration(seconds)}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report = read_json(root / "plan.json")
    embed, fit = report["embed"]["extrapolated"], report["fit"][tower]
    # the tables that the plan is about: all but the other tower's training split
    first, peak = watch("embed", "--data", data, *embed_flags, "--tower", tower, "--store", store)
    other = {"image": "text", "text": "image"}[tower]
    second, peak_2 = watch("embed", "--data", data, *embed_flags, "--tower", other, "--split", "val", "--store", store)
    print("(embed ran twice, once for each tower; one run would start once and not twice)")
    compare("embed, seconds", embed["seconds"], first + second, duration)
    compare("embed, disk", embed["bytes"], bytes_below(Path(store)), size)
    compare("embed, peak memory", embed["peak_bytes"], max(peak, peak_2), size)
    seconds, peak = watch("fit", *fit_flags, "--store", store, "--out", out, "--trainer.enable_progress_bar", "false")
    compare("fit, seconds", fit["extrapolated"]["seconds"], seconds, duration)
    compare("fit, disk", fit["extrapolated"]["bytes"], bytes_below(Path(out)), size)
    compare("fit, peak memory", fit["measured"]["peak_bytes"], peak, size)


def watch(*arguments: str) -> tuple[float, int]:
    """Run a verb; its seconds, and the peak memory of its process and workers."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_distill", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with PeakMemory(psutil.Process(process.pid)) as memory:
        _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"clip-distill {shlex.join(arguments)} failed:\n{errors}")
    return time.perf_counter() - began, memory.peak


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(what: str, planned: float, real: float, unit: Any) -> None:
    print(f"{what:20} planned {unit(planned):>10}, real {unit(real):>10}: ×{planned / real:.2f}")


if __name__ == "__main__":
    main()
