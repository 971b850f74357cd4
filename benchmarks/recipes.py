"""Recipes compared fairly: the same student, data, store and seconds of training, several seeds, curves over time.

    python benchmarks/recipes.py --recipe flickr8k_text_balanced
    python benchmarks/recipes.py --recipe flickr8k_image_balanced --budget 600 --only ours clip-kd lightly
    python benchmarks/recipes.py --recipe flickr8k_text_balanced --init same --lrs 5e-4 1e-3 2e-3

The peers are in peers.py. A schedule needs its length in steps, so each run first measures its steps per second, then
trains for as many steps as the budget holds; the seconds that it really took stand in the table. Validation does not
count, nor do loading the teacher for first weights or reading captions. Recall is that with the teacher's other tower,
over the whole validation set, of the last weights.

Each run has a process of its own. Results are appended to OUT.jsonl: a stopped benchmark goes on where it stopped.
OUT.md, OUT.json and OUT.png (with matplotlib: the extra `charts`) are made at the end; `--report` makes them at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours

from timed import Job, say, train

from clip_distill.system.processes import in_own_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="the recipe to compare; default: flickr8k_TOWER_balanced")
    parser.add_argument("--tower", choices=["image", "text"], default="text", help="where --recipe is not given")
    parser.add_argument("--data", help="instead of the recipe's")
    parser.add_argument("--store", help="instead of the recipe's; it needs both towers' training tables")
    parser.add_argument("--budget", type=float, default=120, help="seconds of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of recipes; default: all")
    parser.add_argument("--init", choices=["paper", "same"], default="paper", help="same: peers start as ours do")
    parser.add_argument(
        "--lrs", nargs="+", type=float, help="try each learning rate with seed 0, then go on by the best"
    )
    parser.add_argument("--calibrate", type=float, default=10, help="seconds to measure steps per second in")
    parser.add_argument("--out", default="results/recipes", help="files' name, without its ending")
    parser.add_argument("--report", action="store_true", help="run nothing, report what OUT.jsonl has")
    given = parser.parse_args()
    import curves

    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    jobs = make_jobs(given)
    done = read_results(out)
    if not given.report:
        run_all(jobs, done, out, given.seeds, given.lrs)
    records = [done[job.key] for job in chosen(jobs, done, given.seeds, given.lrs) if job.key in done]
    if not records:
        sys.exit(f"{out}.jsonl: expected results of these recipes and this budget, found none; run without --report")
    curves.report(records, out)


def make_jobs(given: argparse.Namespace) -> dict[str, Job]:
    """Name → its run with seed 0."""
    import peers

    from clip_distill.recipes import read_recipe
    from clip_distill.store.ensemble import open_table

    path = given.recipe or f"flickr8k_{given.tower}_balanced"
    base = read_recipe(path)
    base |= {key: value for key in ("data", "store") if (value := getattr(given, key)) is not None}
    scale = open_table(base["store"], base["tower"], "val").manifest.teacher["logit_scale"]
    known = peers.recipes(base, peers.peers(base["tower"], round(1 / scale, 4)), given.init == "same")
    if unknown := set(given.only or ()) - set(known):
        sys.exit(f"--only: expected some of {', '.join(known)}; found {', '.join(sorted(unknown))}")
    return {
        name: Job(name, 0, recipe, given.budget, given.calibrate)
        for name, recipe in known.items()
        if name in (given.only or known)
    }


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """Key → record of each finished run; a line that a kill cut off counts as none."""
    found = {}
    path = out.with_suffix(".jsonl")
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["key"]] = record
    return found


def run_all(
    jobs: dict[str, Job], done: dict[str, dict[str, Any]], out: Path, seeds: int, lrs: list[float] | None
) -> None:
    """Seed by seed, all recipes in turn, so that what else the machine does falls on all alike."""
    for step in range(seeds):
        wanted = [each for name, job in jobs.items() for each in of_seed(name, job, done, step, lrs)]
        wanted = [job for job in wanted if job.key not in done]
        for number, job in enumerate(wanted):
            say(f"seed {step}, {number + 1} of {len(wanted)}: {job.name}, learning rate {job.lr:g}")
            record = in_own_process(train, job)
            done[job.key] = record
            with out.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(record)}")  # the break in front ends a line that a kill cut off
                file.flush()
                os.fsync(file.fileno())


def of_seed(name: str, job: Job, done: dict[str, dict[str, Any]], seed: int, lrs: list[float] | None) -> list[Job]:
    """A recipe's runs with one seed: at all learning rates with the first, at the best one of these with the others."""
    job = seeded(job, seed)
    if not lrs or name == "original":
        return [job]
    if seed == 0:
        return [at_rate(job, lr) for lr in lrs]
    return [at_rate(job, best_rate(job, done, lrs))]


def chosen(jobs: dict[str, Job], done: dict[str, dict[str, Any]], seeds: int, lrs: list[float] | None) -> list[Job]:
    """The runs that count: of those with seed 0, the best learning rate's."""
    found = []
    for name, job in jobs.items():
        for seed in range(seeds):
            runs = of_seed(name, job, done, seed, lrs)
            found += runs if len(runs) == 1 else [at_rate(runs[0], best_rate(runs[0], done, lrs or []))]
    return found


def best_rate(job: Job, done: dict[str, dict[str, Any]], lrs: list[float]) -> float:
    """By mean recall of seed 0."""
    first = seeded(job, 0)
    scores = {lr: done[key]["curve"][-1]["mean_recall"] for lr in lrs if (key := at_rate(first, lr).key) in done}
    return max(scores, key=scores.__getitem__, default=lrs[0])


def seeded(job: Job, seed: int) -> Job:
    return replace(job, seed=seed, recipe=job.recipe | {"seed": seed})


def at_rate(job: Job, lr: float) -> Job:
    return replace(job, recipe=job.recipe | {"optimizer": job.recipe["optimizer"] | {"lr": lr}})


if __name__ == "__main__":
    main()
