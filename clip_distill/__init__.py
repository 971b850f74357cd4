"""Distil a CLIP-like teacher into a small image or text encoder, one tower at a time.

    import clip_distill as cd

    cd.embed(data="DATA", teacher="ViT-B-32/openai", store="stores/b32")
    run = cd.fit(tower="text", data="DATA", store="stores/b32", out="runs/text")
    print(cd.evaluate(data="DATA", store="stores/b32", text_student=run))
    cd.export(text_student=run, out="exported")
    cd.load(run).encode_text(["a dog"])

Every name is loaded when it is first used, so importing the package takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from clip_distill.benchmarking.report import BenchmarkReport as BenchmarkReport
    from clip_distill.corpus.layout import Sources as Sources
    from clip_distill.evaluation.drop_in_report import DropInReport as DropInReport
    from clip_distill.evaluation.report import EvaluationReport as EvaluationReport
    from clip_distill.evaluation.zero_shot_report import ZeroShotReport as ZeroShotReport
    from clip_distill.model.load import load as load
    from clip_distill.model.model import Model as Model
    from clip_distill.pixels.photos import BadImage as BadImage
    from clip_distill.planning.report import PlanReport as PlanReport
    from clip_distill.recipe import Loader as Loader
    from clip_distill.recipe import Loss as Loss
    from clip_distill.recipe import Optimizer as Optimizer
    from clip_distill.recipe import Recipe as Recipe
    from clip_distill.recipe import Student as Student
    from clip_distill.store.manifest import StoreError as StoreError
    from clip_distill.system.errors import AlreadyExists as AlreadyExists
    from clip_distill.system.errors import Error as Error
    from clip_distill.system.errors import InvalidValue as InvalidValue
    from clip_distill.system.errors import MissingPackage as MissingPackage
    from clip_distill.system.errors import NotFound as NotFound
    from clip_distill.system.errors import NotWritten as NotWritten
    from clip_distill.system.errors import OutOfMemory as OutOfMemory
    from clip_distill.system.errors import WorkerFailed as WorkerFailed
    from clip_distill.verbs.benchmark import benchmark as benchmark
    from clip_distill.verbs.drop_in import drop_in as drop_in
    from clip_distill.verbs.embed import embed as embed
    from clip_distill.verbs.evaluate import evaluate as evaluate
    from clip_distill.verbs.export import export as export
    from clip_distill.verbs.fit import Run as Run
    from clip_distill.verbs.fit import fit as fit
    from clip_distill.verbs.plan import plan as plan
    from clip_distill.verbs.quickstart import quickstart as quickstart
    from clip_distill.verbs.report import report as report
    from clip_distill.verbs.search import search as search
    from clip_distill.verbs.zero_shot import zero_shot as zero_shot

_HOMES = {
    "clip_distill.benchmarking.report": ("BenchmarkReport",),
    "clip_distill.corpus.layout": ("Sources",),
    "clip_distill.evaluation.drop_in_report": ("DropInReport",),
    "clip_distill.evaluation.report": ("EvaluationReport",),
    "clip_distill.evaluation.zero_shot_report": ("ZeroShotReport",),
    "clip_distill.model.load": ("load",),
    "clip_distill.model.model": ("Model",),
    "clip_distill.pixels.photos": ("BadImage",),
    "clip_distill.planning.report": ("PlanReport",),
    "clip_distill.recipe": ("Loader", "Loss", "Optimizer", "Recipe", "Student"),
    "clip_distill.store.manifest": ("StoreError",),
    "clip_distill.system.errors": (
        "AlreadyExists",
        "Error",
        "InvalidValue",
        "MissingPackage",
        "NotFound",
        "NotWritten",
        "OutOfMemory",
        "WorkerFailed",
    ),
    "clip_distill.verbs.benchmark": ("benchmark",),
    "clip_distill.verbs.drop_in": ("drop_in",),
    "clip_distill.verbs.embed": ("embed",),
    "clip_distill.verbs.evaluate": ("evaluate",),
    "clip_distill.verbs.export": ("export",),
    "clip_distill.verbs.fit": ("Run", "fit"),
    "clip_distill.verbs.plan": ("plan",),
    "clip_distill.verbs.quickstart": ("quickstart",),
    "clip_distill.verbs.report": ("report",),
    "clip_distill.verbs.search": ("search",),
    "clip_distill.verbs.zero_shot": ("zero_shot",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)

# Whenever timm is imported, before or after this: its name for `timm_cut` students, by which open_clip loads them
register_post_import_hook("clip_distill.towers.registered:add", "timm.models")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("clip-distill")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF, "__version__"])
