"""The recipe: one YAML, one run. Keys are typed, unknown ones are errors, each is a flag too (--optimizer.lr 1e-3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from clip_distill.data.layout import Sources


@dataclass
class Student:
    """Which tower to train.

    Args:
        name: vit, timm or timm_cut (image), transformer (text), or module:Attr; by default vit or transformer.
        options: Its options, e.g. --student.options.width 384.
        init: random, or teacher: first weights cut from the teacher's tower, which is loaded once before training.
        select: What of the teacher a narrower transformer starts with: its leading heads and channels, the important
            ones by the L2 norms of their weights, or its principal directions.
        vocabulary: full, or corpus: only those of CLIP's tokens that the training captions use; other words are spelt.
        min_count: For vocabulary corpus, keep the tokens that occur this often.
        common: For vocabulary corpus, keep this many of CLIP's most common tokens whatever the captions use.
    """

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    init: Literal["random", "teacher"] = "random"
    select: Literal["leading", "important", "principal"] = "leading"
    vocabulary: Literal["full", "corpus"] = "full"
    min_count: int = 1
    common: int = 0


@dataclass
class Loss:
    """loss = Σ weight_i · scale_i · loss_i, the three lists in the same order.

    Args:
        names: Of l1, mse, cosine, ce, kl (with the teacher's embedding of the sample), gram_kl, rkd_distance, infonce
            (within the batch), queue_kl (with earlier batches), bank_kl, affinity (with the teacher's stored embeddings
            of the other tower), or module:Attr.
        weights: How much each matters; by default 1 each.
        scales: Brings losses of different size to a like one; by default 1 each.
        options: Loss name → its options, e.g. --loss.options '{bank_kl: {temperature: 0.02}}'.
        bank: How many stored embeddings of the other tower bank_kl and affinity compare with, drawn by the seed from
            the store's training table.
    """

    names: list[str] = field(default_factory=lambda: ["cosine"])
    weights: list[float] | None = None
    scales: list[float] | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    bank: int = 4096


@dataclass
class Optimizer:
    """AdamW, with no decay on norms, biases and position tables.

    Args:
        lr: Peak learning rate.
        weight_decay: Of matrices and embedding tables.
        betas: AdamW's two.
        warmup: Steps of linear warm-up, or a share of all steps where below 1.
        schedule: After the warm-up, per step: cosine to min_lr, constant, or step (times step_gamma every step_epochs).
        min_lr: Where the cosine ends, as a share of lr.
        step_epochs: Epochs between two steps of the step schedule.
        step_gamma: Factor of each step.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    min_lr: float = 0.0
    step_epochs: int = 10
    step_gamma: float = 0.5


@dataclass
class Loader:
    """How samples are brought.

    Args:
        batch_size: Samples per step and process.
        val_batch_size: Samples per forward pass of the validation.
        workers: Processes that prepare batches; by default 0 for text, and all cores but one (8 at most) for images.
    """

    batch_size: int = 256
    val_batch_size: int = 256
    workers: int | None = None


@dataclass
class Recipe:
    """One run.

    Args:
        tower: Which of the teacher's towers to distil.
        data: Folder in the documented layout.
        store: What `clip-distill embed` wrote.
        out: Folder of the run: student/, checkpoints/, logs/, recipe.yaml.
        student: The tower to train.
        loss: What to minimise.
        optimizer: How to minimise it.
        loader: Batches.
        target: stored (the teacher's embeddings come from the store) or online (the teacher runs at every step).
        teacher: The teacher to run, for target online, or to take student.init from; the store's by default.
        augment: Augmentation, for target online: a fresh view of each image every epoch, one for teacher and student.
        sources: Other places for parts of the data.
        seed: Of weights, batch order and online views.
        resume: Go on from the last checkpoint in `out`.
        overwrite: Replace what is in `out`.
        wandb: Weights & Biases project to log to, beside TensorBoard and CSV.
    """

    tower: Literal["image", "text"]
    data: str | None
    store: str
    out: str
    student: Student = field(default_factory=Student)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loader: Loader = field(default_factory=Loader)
    target: Literal["stored", "online"] = "stored"
    teacher: str | None = None
    augment: str = "none"
    sources: Sources = field(default_factory=Sources)
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    wandb: str | None = None
