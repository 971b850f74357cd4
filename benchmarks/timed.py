"""One timed run of a recipe: steps per second first, then as many steps as a budget of seconds holds, with a curve."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

POINTS = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the budget, where students are validated
WARM = 3  # steps before the calibration's clock starts
FEWEST = 10  # steps of a run


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        name: Of the recipe.
        seed: Of its weights, batches and draws.
        recipe: All of it, as in a YAML.
        budget: Seconds of training.
        calibration: Seconds in which steps per second are measured.
    """

    name: str
    seed: int
    recipe: dict[str, Any]
    budget: float
    calibration: float

    @property
    def key(self) -> str:
        """Of all that it depends on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lr(self) -> float:
        return float(self.recipe["optimizer"]["lr"])


def train(job: Job) -> dict[str, Any]:
    """Measure, train and validate, in this process."""
    from clip_distill.towers.spec import count_parameters
    from clip_distill.train.settings import fit_parser, to_recipe
    from clip_distill.train.trainer import quiet_lightning

    quiet_lightning()
    parser = fit_parser()
    recipe, options = to_recipe(parser, parser.parse_object(job.recipe))
    recipe.loader.val_batch_size = recipe.loader.batch_size  # no more memory than training takes
    rate = measure_rate(recipe, options, job.calibration)
    gc.collect()  # its optimiser and workers
    module, data = build(recipe)
    spent = solve(recipe, module, data)
    steps = max(FEWEST, round((job.budget - spent) * rate))
    say(f"{job.name}: {rate:.2f} steps/s, so {steps} steps in {job.budget - spent:.0f} s")
    teacher = module.validation.metrics(module.validation.own)
    curve = run_trainer(module, data, options, steps, validated=True, spent=spent)
    return {
        "key": job.key,
        "name": job.name,
        "tower": recipe.tower,
        "seed": job.seed,
        "lr": job.lr,
        "init": recipe.student.init,
        "budget": job.budget,
        "steps": steps,
        "seconds": curve.seconds,
        "parameters": count_parameters(module.student),
        "trained_parameters": sum(each.numel() for each in module.student.parameters() if each.requires_grad),
        "curve": curve.points,
        "teacher": teacher,
        "recipe": job.recipe,
    }


def measure_rate(recipe: Any, options: dict[str, Any], seconds: float) -> float:
    """Steps per second of this very recipe, from a run that is thrown away."""
    module, data = build(recipe)
    clock = run_trainer(module, data, options, 10**6, stop_after=seconds)
    return (clock.steps - WARM) / (clock.seconds - clock.warm_seconds)


def build(recipe: Any) -> tuple[Any, Any]:
    """The module and its data, as `fit` makes them."""
    import lightning as L

    from clip_distill.batches.features import pack_features
    from clip_distill.students.inherit import inherit
    from clip_distill.train.assemble import assemble
    from clip_distill.train.begin import checked_teacher, online_target

    online, teach = online_target(recipe)
    source = checked_teacher(recipe) if recipe.student.init == "teacher" else None
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    module, data = assemble(recipe, online, teach)
    if source is not None:
        inherit(module.spec, module.student, *source, recipe.student.select)
    module.prepare(recipe)
    if recipe.loader.features is not None:
        pack_features(recipe.loader.features, module.spec, module.student, data)
    return module, data


def solve(recipe: Any, module: Any, data: Any) -> float:
    """Seconds that the recipe's `student.probe` takes: it learns from the targets, so it is training."""
    from clip_distill.train.head import solve_head

    began = time.perf_counter()
    if recipe.student.probe:
        solve_head(module, data, recipe.student.probe)
    return time.perf_counter() - began


def run_trainer(
    module: Any,
    data: Any,
    options: dict[str, Any],
    steps: int,
    stop_after: float | None = None,
    validated: bool = False,
    spent: float = 0.0,
) -> Any:
    """Train for so many steps, or seconds; a clock that has seconds, steps and, if validated, the curve.

    The clock begins at `spent` seconds.
    """
    import lightning as L
    import torch

    class Clock(L.Callback):
        seconds, warm_seconds, steps = spent, 0.0, 0

        def __init__(self) -> None:
            self.points: list[dict[str, float]] = []
            self.wanted = {max(1, round(part * steps)) for part in POINTS} if validated else set()
            self.loader: Any = None
            self.since = 0.0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.since = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.steps += 1
            if self.steps == WARM or self.steps in self.wanted or stop_after is not None:
                self.count()
            if self.steps == WARM:
                self.warm_seconds = self.seconds
            if stop_after is not None and self.steps > WARM and self.seconds - self.warm_seconds >= stop_after:
                trainer.should_stop = True
            if self.steps in self.wanted:
                self.loader = self.loader or data.val_dataloader()
                metrics = validate(module, self.loader)
                self.points.append({"seconds": self.seconds, "steps": self.steps, **metrics})
                said = f"{metrics['t2i_r10']:.1f}, mean recall {metrics['mean_recall']:.1f}"
                say(f"  after {self.seconds:.0f} s: text→image R@10 {said}")
                self.since = time.perf_counter()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.count()

        def count(self) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds, self.since = self.seconds + now - self.since, now

    clock = Clock()
    ours = {"max_steps": steps, "max_epochs": 10**6, "callbacks": clock, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = L.Trainer(**{**options, **ours, **quiet, "num_sanity_val_steps": 0, "use_distributed_sampler": False})
    trainer.fit(module, data)
    return clock


def validate(module: Any, loader: Any) -> dict[str, float]:
    """Recall with the teacher's other tower over the whole validation set, in float32."""
    import torch

    module.eval()
    whole = torch.empty_like(module.validation.own)
    with torch.inference_mode():
        for batch in loader:
            whole[batch.rows] = module(batch.inputs.to(module.device)).float().cpu()
    module.train()
    return dict(module.validation.metrics(whole))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
