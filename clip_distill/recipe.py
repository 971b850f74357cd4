"""The recipe: one YAML, one run. Keys are typed, unknown ones are errors, each is a flag too (--optimizer.lr 1e-3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.system.errors import InvalidValue


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
        tokenizer: A text student's own, by default the teacher's: train, on the training captions (of
            student.options.vocab_size tokens, by default 4000), or the path of a Hugging Face tokenizer.json.
        min_count: For vocabulary corpus, keep the tokens that occur this often.
        common: For vocabulary corpus, keep this many of CLIP's most common tokens whatever the captions use.
        freeze: What does not train: N for the stem or embeddings and the first N blocks (of a convolutional net:
            stages), or names of modules, e.g. --student.freeze '[token_embedding]'.
        word_dropout: In training, the share of tokens of which a text student sees no embedding, only the position.
        probe: Before training, solve the student's head (its last linear map; timm_cut's two layers) by least squares
            on the targets of this many samples, 4096 for instance; 0 does not.
    """

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    init: Literal["random", "teacher"] = "random"
    select: Literal["leading", "important", "principal"] = "leading"
    vocabulary: Literal["full", "corpus"] = "full"
    tokenizer: str | None = None
    min_count: int = 1
    common: int = 0
    freeze: int | list[str] = 0
    word_dropout: float = 0.0
    probe: int = 0


@dataclass
class Loss:
    """loss = Σ weight_i · scale_i · loss_i, the three lists in the same order.

    Args:
        names: Of l1, mse, cosine, ce, kl (with the teacher's embedding of the sample), gram_kl, rkd_distance, infonce
            (within the batch), queue_kl (with earlier batches), bank_kl, affinity (with the teacher's stored embeddings
            of the other tower), or module:Attr. For tower both, each student's.
        weights: How much each matters; by default 1 each.
        scales: Brings losses of different size to a like one; by default 1 each.
        options: Loss name → its options, e.g. --loss.options '{bank_kl: {temperature: 0.02}}'.
        bank: How many stored embeddings of the other tower bank_kl and affinity compare with, drawn by the seed from
            the store's training table.
        between: For tower both, losses between the two students → weight: both_affinity (affinities as the teacher's),
            both_infonce (contrastive), or module:Attr. Their temperature is by default the teacher's.
    """

    names: list[str] = field(default_factory=lambda: ["cosine"])
    weights: list[float] | None = None
    scales: list[float] | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    bank: int = 4096
    between: dict[str, float] = field(default_factory=lambda: {"both_affinity": 1.0})


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
        layer_decay: Each layer's learning rate as a share of that of the layer above it; 1 for one rate.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    min_lr: float = 0.0
    step_epochs: int = 10
    step_gamma: float = 0.5
    layer_decay: float = 1.0


@dataclass
class Loader:
    """How samples are brought.

    Args:
        batch_size: Samples per step and process.
        val_batch_size: Samples per forward pass of the validation.
        workers: Processes that prepare batches; by default 0 for text and packed photos, and for other photos as many
            as keep up with the student, measured at the start.
        packed: Folder for a packed copy of the photos as the student sees them, made once, on a fast disk: an epoch
            then decodes nothing.
        features: Folder for what the frozen first stages of a timm_cut student (student.freeze) make of each view,
            in float16, computed once: an epoch then neither decodes a photo nor runs them.
        resident: Keep captions and their stored targets on the training device, and draw the batches there: the same
            ones, without a step waiting for them; memory keeps them in main memory. auto does where a GPU trains, on
            it if they take at most a quarter of its free memory, else in main memory by the same measure.
    """

    batch_size: int = 256
    val_batch_size: int = 256
    workers: int | None = None
    packed: str | None = None
    features: str | None = None
    resident: bool | Literal["auto", "memory"] = "auto"


@dataclass
class Recipe:
    """One run.

    Args:
        tower: Which of the teacher's towers to distil; both trains two students that were distilled already together,
            on (photo, caption) pairs.
        data: Folder in the documented layout; none where sources say where all parts are.
        store: What `clip-distill embed` wrote.
        out: Folder of the run: student/, checkpoints/, logs/, recipe.yaml.
        student: The tower to train.
        loss: What to minimise.
        optimizer: How to minimise it.
        loader: Batches.
        image_student: For tower both, the image student to go on with: a run's folder, or an open_clip model's name.
        text_student: For tower both, the text student.
        start_from: A run of this tower (--from RUN): its settings are taken where others are not given, and its student
            is trained on, on data that has grown, for half its epochs at a third of its learning rate.
        target: stored (the teacher's embeddings come from the store), online (the teacher runs at every step), or photo
            (a caption is to find its photo's stored embedding, so it may be in any language).
        teacher: The teacher to run, for target online, or to take student.init from; the store's by default.
        augment: Augmentation, for target online: a fresh view of each image every epoch, one for teacher and student.
        ema: Keep a moving average of the weights too, with this decay at most (0.999); it is what is validated and
            saved. 0 keeps none.
        mixup: Mix each image with another of its batch, and their targets, by a share from Beta(mixup, mixup); 0 does
            not.
        compile: Compile the student by torch.compile: a minute's start for faster steps, on GPUs above all.
        checkpointing: Compute blocks again in the backward pass instead of keeping what they computed: slower, in less
            memory.
        holdout: Where the data has no validation photos with captions, this share of the training rows, 2,000 at most,
            is kept from training, and the student is measured by how well it finds the teacher's embeddings of them.
        sources: Other places for parts of the data.
        prompts: Share of an epoch that made-up texts have, which `embed --prompts vocabulary` stored: a text student
            then knows more words than its captions have. Without captions it learns from these alone.
        translations: Files of parallel captions (TSV, CSV, parquet) to train a text student on, in place of the data's:
            a caption that the store has, and the same in another language, which learns the first one's embedding.
        translations_columns: The caption's and its translation's column, by name or by number from 1.
        translations_originals: Train on the captions that the store has, too.
        seed: Of weights, batch order and online views.
        resume: Go on from the last checkpoint in `out`; best goes on from the best one's weights, with a schedule that
            begins anew, should the last one be damaged.
        overwrite: Replace what is in `out`.
        wandb: Weights & Biases project to log to, beside TensorBoard and CSV.
        report: Write report.html into `out` at the end, a page that shows what was kept (where there are photos with
            captions to validate on).
    """

    tower: Literal["image", "text", "both"]
    data: str | None
    store: str
    out: str
    student: Student = field(default_factory=Student)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loader: Loader = field(default_factory=Loader)
    image_student: str | None = None
    text_student: str | None = None
    start_from: str | None = None
    target: Literal["stored", "online", "photo"] = "stored"
    teacher: str | None = None
    augment: str = "none"
    ema: float = 0.0
    mixup: float = 0.0
    compile: bool = False
    checkpointing: bool = False
    holdout: float = 0.05
    sources: Sources = field(default_factory=Sources)
    prompts: float = 0.0
    translations: list[str] | str | None = None
    translations_columns: tuple[str | int, str | int] = (1, 2)
    translations_originals: bool = False
    seed: int = 0
    resume: bool | Literal["best"] = False
    overwrite: bool = False
    wandb: str | None = None
    report: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError where values don't fit."""
        if self.tower == "both":
            self._check_both()
        elif (self.image_student, self.text_student, self.loss.between) != (None, None, Loss().between):
            raise InvalidValue(
                f"image_student, text_student and loss.between: expected --tower both, found {self.tower}, which "
                "trains one new student. Give --tower both, or leave them out"
            )
        if self.mixup and self.tower == "text":
            raise InvalidValue("mixup: expected --tower image, found text: tokens can't be mixed. Leave --mixup out")
        if self.student.word_dropout and self.tower == "image":
            raise InvalidValue("student.word_dropout: expected --tower text, found image, which reads no words")
        if self.tower == "image" and (self.translations is not None or self.student.tokenizer is not None):
            raise InvalidValue(
                "translations and student.tokenizer: expected --tower text, found image, which reads none"
            )
        if self.translations is not None and self.target != "stored":
            raise InvalidValue(
                f"translations: expected --target stored, found {self.target}: a translation learns its original's "
                "embedding. Leave one of the two out"
            )
        if self.target == "photo" and self.tower != "text":
            raise InvalidValue(f"target photo: expected --tower text, found {self.tower}. Leave --target out")
        if self.loader.resident in (True, "memory") and (self.tower, self.target) != ("text", "stored"):
            raise InvalidValue(
                f"loader.resident: expected --tower text and --target stored, found {self.tower} and {self.target}: "
                "photos are too many bytes, and an online teacher's captions are tokens of two kinds. Leave it out"
            )
        if self.student.probe and self.target == "online":
            raise InvalidValue("student.probe: expected --target stored, found online. Leave it out")
        if self.student.tokenizer is not None and self.student.vocabulary == "corpus":
            raise InvalidValue(
                "student.vocabulary corpus keeps a part of the teacher's tokenizer: expected no --student.tokenizer "
                f"beside it, found {self.student.tokenizer!r}"
            )
        if self.prompts and (self.tower, self.target, self.translations) != ("text", "stored", None):
            raise InvalidValue(
                f"prompts: expected --tower text, --target stored and no translations, found {self.tower}, "
                f"{self.target} and {self.translations}. Leave --prompts out"
            )
        decay, dropout = self.optimizer.layer_decay, self.student.word_dropout
        ranges = {
            "mixup": (self.mixup >= 0, "0 or more", self.mixup),
            "ema": (0 <= self.ema < 1, "0, or a decay below 1", self.ema),
            "optimizer.layer_decay": (0 < decay <= 1, "above 0 and up to 1", decay),
            "student.word_dropout": (0 <= dropout < 1, "0, or a share below 1", dropout),
            "prompts": (0 <= self.prompts <= 1, "a share from 0 to 1", self.prompts),
            "student.probe": (self.student.probe >= 0, "0 or more samples", self.student.probe),
        }
        for name, (fits, expected, found) in ranges.items():
            if not fits:
                raise InvalidValue(f"{name}: expected {expected}, found {found}")

    def _check_both(self) -> None:
        """Two students that are there already, and nothing that is for a new one, or for one tower.

        Raises:
            ValueError: An option does not fit.
        """
        for name in ("image_student", "text_student"):
            if getattr(self, name) is None:
                raise InvalidValue(
                    f"--tower both trains two students together: expected --{name} RUN, a folder that fit wrote, found "
                    "none. Distil each tower first (--tower image, --tower text)"
                )
        frozen = self.student.freeze
        refused = {
            "student (but for freeze)": self.student != Student(freeze=frozen),
            "student.freeze by number": isinstance(frozen, int) and frozen != 0,
            "start_from": self.start_from is not None,
            f"target {self.target}": self.target != "stored",
            "translations": self.translations is not None,
            "mixup": self.mixup != 0,
            "loader.features": self.loader.features is not None,
            "optimizer.layer_decay": self.optimizer.layer_decay != 1,
        }
        if found := [name for name, given in refused.items() if given]:
            raise InvalidValue(
                f"--tower both: expected the two students as they are, stored targets and whole photos, found "
                f"{', '.join(found)}. Leave it out. To freeze, name modules: --student.freeze '[image]' keeps all "
                "of the image student"
            )

    @property
    def one(self) -> Literal["image", "text"]:
        """The tower, where it is one.

        Raises:
            ValueError: It is both.
        """
        if self.tower == "both":
            raise InvalidValue("expected --tower image or text, found both")
        return self.tower
