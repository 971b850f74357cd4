"""What the main process spends on a training step besides the student: Python, the loader, Lightning.

    python benchmarks/host_time.py
    python benchmarks/host_time.py --batch 64 256 1024

On a GPU the student computes beside Python, and a step takes the longer of the two: what this program measures is the
least that a step can take there. The student is one with hardly any arithmetic, all else is `fit`'s own: order, loader,
losses, clipping, optimiser, average, logging every 10 steps, checkpoints. What remains of arithmetic, the same on one
batch in memory without a loader or Trainer, is taken off. Photos are packed at
64 pixels, and a worker reads them, as on a GPU.
Times are CPU time of the main thread, so that other programs on the machine count little; the modes take turns.

Data are the quickstart's scenes and teacher, drawn anew in a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours

WARM = 20  # steps before the clock starts


@dataclass(frozen=True)
class Mode:
    """A way to bring batches: a tower, and keys of `loader`."""

    name: str
    tower: str
    loader: dict[str, Any]


MODES = (
    Mode("text, ordinary", "text", {"resident": False, "workers": 0}),
    Mode("text, resident", "text", {"resident": True, "workers": 0}),
    Mode("image, packed", "image", {"packed": "packed", "workers": 1}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[256], help="samples a step")
    parser.add_argument("--steps", type=int, default=200, help="steps of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    from clip_distill.system.openmp import wait_shortly

    wait_shortly()  # as every command does, before torch is loaded
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root)
        print("| | samples a step | ms a step | of it arithmetic | besides |\n| --- | ---: | ---: | ---: | ---: |")
        for batch in given.batch:
            results: dict[str, list[tuple[float, float]]] = {mode.name: [] for mode in MODES}
            for _ in range(given.repeats):
                for mode in MODES:
                    results[mode.name].append(measure(root, mode, batch, given.steps))
            for name, pairs in results.items():
                whole, floor = (statistics.median(values) for values in zip(*pairs, strict=True))
                print(f"| {name} | {batch} | {whole:.2f} | {floor:.2f} | {whole - floor:.2f} |", flush=True)


def make_data(root: Path) -> None:
    """Scenes, a small teacher, its store."""
    from clip_distill.verbs import run as run_verb
    from clip_distill.walkthrough.scenes import draw_dataset
    from clip_distill.walkthrough.teacher import train_teacher

    draw_dataset(root / "data", 2000, 50, seed=0)
    train_teacher(root / "data", root / "teacher", epochs=1, seed=0)
    places = ["--data", str(root / "data"), "--teacher", f"local-dir:{root / 'teacher'}"]
    run_verb("embed", [*places, "--store", str(root / "store"), "--device", "cpu"])


def measure(root: Path, mode: Mode, batch: int, steps: int) -> tuple[float, float]:
    """Milliseconds of the main thread for a step of `fit`, and for its arithmetic alone."""
    import lightning as L
    from stub import Stub

    from clip_distill.recipe import Loader, Recipe, Student
    from clip_distill.train.assemble import assemble
    from clip_distill.train.settings import TRAINER_DEFAULTS
    from clip_distill.train.trainer import make_trainer, quiet_lightning

    class Clock(L.Callback):
        began = ended = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if trainer.global_step == WARM:
                self.began = time.thread_time()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.ended = time.thread_time()

    quiet_lightning(entirely=True)
    keys = {key: str(root / value) if key == "packed" else value for key, value in mode.loader.items()}
    places = {"data": str(root / "data"), "store": str(root / "store"), "out": tempfile.mkdtemp(dir=root)}
    student = Student(options={"input_resolution": 64} if mode.tower == "image" else {})
    loader = Loader(batch_size=batch, **keys)
    recipe = Recipe(mode.tower, **places, student=student, loader=loader, ema=0.99)  # type: ignore[arg-type]
    module, data = assemble(recipe)
    module.student = Stub(mode.tower, data.train.store.manifest.dim)  # type: ignore[union-attr]
    module.prepare(recipe)
    clock = Clock()
    options = TRAINER_DEFAULTS | {"max_epochs": -1, "max_steps": WARM + steps, "limit_val_batches": 0}
    options |= {"callbacks": clock, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer, *_ = make_trainer(recipe, options, Path(recipe.out))
    trainer.fit(module, data)
    return 1e3 * (clock.ended - clock.began) / steps, 1e3 * arithmetic(module, data, steps) / steps


def arithmetic(module: Any, data: Any, steps: int) -> float:
    """Seconds of the main thread for forward, loss, backward and the optimiser's step on one batch in memory."""
    from clip_distill.recipe import Optimizer
    from clip_distill.train.optimizer import make_optimizer

    batch = next(iter(data.train_dataloader()))
    optimizer = make_optimizer(module.student, Optimizer(), fused=True)
    began = 0.0
    for step in range(WARM + steps):
        if step == WARM:
            began = time.thread_time()
        loss, _ = module.objective(module.embed(module.spec, module.student, batch.inputs).float(), batch.target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.thread_time() - began


if __name__ == "__main__":
    main()
