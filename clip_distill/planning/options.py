"""The flags of `plan` that are not a recipe's; torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OWN = ("tower", "store", "out", "teacher", "augment", "seed")  # of a recipe's keys, those that mean something else here


@dataclass
class Options:
    """What `embed` is to do, and how it is measured.

    Args:
        teacher: As for embed: ViT-B-32/openai, local-dir:PATH, hf-hub:ORG/REPO, transformers:PATH_OR_NAME.
        tower: Which of the teacher's towers to distil; for both, what is said of a student must be in its recipe.
        image_recipe: For tower both, the image student's recipe, as fit takes it; flags override it.
        text_recipe: For tower both, the text student's.
        views: As for embed: views per training image.
        augment: As for embed: how views 1 and up are made.
        seed: As for embed and fit.
        batch_size: As for embed: views or captions per forward pass. A student's is loader.batch_size.
        workers: As for embed: processes that decode images. A student's are loader.workers.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: As for embed: what the teacher computes in. A student's is trainer.precision.
        dtype: As for embed: what is stored.
        shard_rows: As for embed.
        seconds: How long each stage is measured.
        out: JSON file to write the plan to, named *.json; a recipe's own `out`, a folder, is left alone.
        store: Of a recipe; no store is read or written.
        preset: As for fit: without a recipe, the students are those of the balanced preset; none keeps to the defaults.
    """

    teacher: str
    tower: Literal["image", "text", "both"] = "both"
    image_recipe: str | None = None
    text_recipe: str | None = None
    views: int = 1
    augment: str = "none"
    seed: int = 0
    batch_size: int = 64
    workers: int = 1
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    dtype: Literal["float16", "float32"] = "float16"
    shard_rows: int = 8192
    seconds: float = 3.0
    out: str | None = None
    store: str | None = None
    preset: Literal["smallest", "balanced", "best", "none"] | None = None
