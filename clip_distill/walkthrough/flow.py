"""The steps of the quickstart, each an ordinary command that is shown before it runs, and the final table."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from clip_distill.corpus.layout import scan
from clip_distill.store.ensemble import open_table
from clip_distill.students.cut import own_backbone, stage_depths
from clip_distill.system.errors import AlreadyExists, InvalidValue
from clip_distill.system.files import read_json, write_json
from clip_distill.train.trainer import quiet_lightning
from clip_distill.walkthrough.scenes import draw_dataset
from clip_distill.walkthrough.steps import WIDTH, RunVerb, Steps
from clip_distill.walkthrough.teacher import train_teacher

MARKER = "quickstart.json"


@dataclass(frozen=True)
class Budget:
    """How much is drawn and trained.

    Args:
        photos: Training photos to draw.
        val_photos: Validation photos to draw.
        teacher_epochs: Of the teacher's training.
        image_samples: Photos that the image student sees, counted once per epoch.
        image_batch: Photos per step.
        image_flags: Of `fit`, for the image student.
        text_samples: Captions that the text student sees.
        text_batch: Captions per step.
        text_flags: Of `fit`, for the text student.
        cut_teacher: Whether the image student is cut from the teacher where that is possible, instead of `image_flags`.
    """

    photos: int = 4000
    val_photos: int = 400
    teacher_epochs: int = 5
    image_samples: int = 32_000
    image_batch: int = 64
    image_flags: tuple[str, ...] = ("--student.name", "timm", "--student.options.model", "test_resnet")
    text_samples: int = 128_000
    text_batch: int = 256
    text_flags: tuple[str, ...] = (
        *("--student.options.transformer_width", "64", "--student.options.transformer_layers", "2"),
        *("--student.options.transformer_heads", "2", "--optimizer.lr", "4e-3"),
    )
    cut_teacher: bool = False


# Photos of the real world need a student with more in it, best one that starts from the teacher (`cut_flags`). From
# nothing, half the usual resolution and four epochs of 6,000 photos, minutes on a CPU, show that the data and the
# teacher work, and are not a result to keep.
REAL = Budget(
    image_samples=24_000,
    image_flags=(
        *("--student.name", "timm", "--student.options.model", "mobilenetv2_050"),
        *("--student.options.input_resolution", "128"),
    ),
    text_flags=("--student.options.transformer_layers", "2"),
    cut_teacher=True,
)


def run(
    out: Path, data: str | None, teacher: str | None, seed: int, budget: Budget, run_verb: RunVerb
) -> dict[str, Any]:
    """Draw, train, embed, fit both students, evaluate, export; then show the table.

    Args:
        out: Folder for everything that is made.
        data: Folder in the documented layout, or None to draw scenes.
        teacher: The teacher's name, or None to train one; both are given, or neither.
        seed: Of the scenes, the teacher and the students.
        budget: How much is drawn and trained.
        run_verb: Runs a verb in this process.

    Returns:
        What the table shows: `rows`, `seconds` by step, `exported`.

    Raises:
        ValueError: Only one of `data` and `teacher` is given.
        FileExistsError: `out` holds something else, or a quickstart of other arguments.
    """
    if (data is None) != (teacher is None):
        found = f"data={data!r} and teacher={teacher!r}"
        raise InvalidValue(f"expected both --data and --teacher, or neither (which draws its own), found {found}")
    claim(out, {"data": data, "teacher": teacher, "seed": seed, **asdict(budget)})
    quiet_lightning(entirely=True)
    console = Console(width=WIDTH)
    steps = Steps(console, run_verb)
    own_data = data is not None
    if data is None or teacher is None:
        data, folder = str(out / "data"), out / "teacher"
        teacher = f"local-dir:{folder}"
        drawn = (
            f"{budget.photos:,} photos of simple scenes, each with captions, and {budget.val_photos} to measure with."
        )
        with steps.step("draw scenes", drawn):
            draw_dataset(Path(data), budget.photos, budget.val_photos, seed=seed)
        with steps.step("train a teacher", "A small CLIP that knows these scenes. You would take one from a hub."):
            train_teacher(Path(data), folder, budget.teacher_epochs, seed=seed)
    distil(steps, out, data, teacher, seed, budget)
    result = {
        "rows": rows(out, teacher, read_json(out / "evaluation.json")),
        "seconds": steps.seconds,
        "exported": str(out / "exported"),
    }
    write_json(out / "result.json", result)
    show(console, result)
    console.print(advice(out, data, own_data), highlight=False, soft_wrap=True, markup=False)
    return result


def claim(out: Path, made_from: dict[str, Any]) -> None:
    """Make `out` this quickstart's own; only such a folder is written to again, and only by the same arguments once it
    has embeddings."""
    made_from = json.loads(json.dumps(made_from))  # as it comes back from the file
    if (out / MARKER).is_file():
        found = read_json(out / MARKER)
        changed = [
            f"{key} {found.get(key)!r}, now {value!r}" for key, value in made_from.items() if found.get(key) != value
        ]
        if changed and (out / "store").exists():
            raise AlreadyExists(
                f"{out}: expected a quickstart of the same arguments, found another one ({'; '.join(changed)}); "
                "choose another --out, or delete the folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(
            f"{out}: expected a new folder or an earlier quickstart's, found other files; choose another --out"
        )
    write_json(out / MARKER, made_from)


def distil(steps: Steps, out: Path, data: str, teacher: str, seed: int, budget: Budget) -> None:
    """The real job, verb by verb."""
    store, image, text = str(out / "store"), str(out / "runs/image"), str(out / "runs/text")
    train = scan(data).train
    common = ("--data", data, "--store", store)
    fit = (*common, "--seed", str(seed), "--overwrite", "true")
    image_length = length(train.require_images().num_rows, budget.image_samples, budget.image_batch)
    text_length = length(train.require_captions().num_rows, budget.text_samples, budget.text_batch)
    students = ("--image_student", image, "--text_student", text)
    told = "The teacher looks at every photo and caption once; what it makes of them is stored."
    steps.run("embed", told, "embed", *common, "--teacher", teacher)
    cut = cut_flags(store, str(out / "features")) if budget.cut_teacher else ()
    image_flags = cut or budget.image_flags
    told = "A smaller image encoder learns from the store alone, the teacher isn't loaded."
    flags = (*image_length, *image_flags)
    steps.run("fit the image student", told, "fit", "--tower", "image", *fit, "--out", image, *flags)
    flags = (*text_length, *budget.text_flags)
    told = "A smaller text encoder does the same; neither needs the other."
    steps.run("fit the text student", told, "fit", "--tower", "text", *fit, "--out", text, *flags)
    told = "What each finds among photos and captions that it has not seen, beside the teacher."
    steps.run("evaluate", told, "evaluate", *common, *students, "--out", str(out / "evaluation.json"))
    # open_clip has no class for a backbone that ends early; there the text student goes with the teacher's image tower
    exported = ("--text_student", text) if cut else students
    told = "A folder that open_clip loads, in the teacher's place."
    steps.run(
        "export", told, "export", "--store", store, *exported, "--out", str(out / "exported"), "--overwrite", "true"
    )


def cut_flags(store: str, features: str) -> tuple[str, ...]:
    """Flags for an image student that is the first stages of the teacher's own backbone; none if that can't be cut.

    Args:
        store: What `embed` wrote.
        features: Folder for what the stages that stay as they are make of the photos.
    """
    teacher = open_table(store, "image", "val").manifest.teacher
    model = own_backbone(teacher)
    try:
        depths = stage_depths(model)[:-1] if model and timm.is_model(model) else []
    except ValueError:
        depths = []
    if len(depths) < 3:
        return ()
    depths[-1] = max(1, depths[-1] // 2)
    return (
        *("--student.name", "timm_cut", "--student.options.depths", str(depths), "--student.init", "teacher"),
        *("--student.freeze", str(len(depths) - 2), "--loader.features", features),
        *("--student.probe", "4096", "--loss.names", "[cosine, affinity, queue_kl]"),
        *("--loss.weights", "[0.5, 1.4, 0.6]", "--loss.options.queue_kl", "{size: 0, temperature: 0.03}"),
        *("--loss.options.affinity.temperature", f"{1 / teacher['logit_scale']:.4g}"),
    )


def length(rows: int, samples: int, batch: int) -> tuple[str, ...]:
    """Flags for `fit` to see about `samples` of `rows`: whole epochs, or a part of one where the data are larger."""
    flags = ("--loader.batch_size", str(batch), "--trainer.max_epochs", str(max(1, round(samples / rows))))
    return flags if rows <= samples else (*flags, "--trainer.limit_train_batches", str(math.ceil(samples / batch)))


def rows(out: Path, teacher: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per pairing of towers: name, parameters of both, bytes of what is new in it, recall and share kept."""
    parameters = {
        "teacher": report["teacher"]["parameters"],
        "student": {tower: student["parameters"] for tower, student in report["students"].items()},
    }
    pairings = {(pair["image"], pair["text"]): pair for pair in report["pairings"]}
    own = {tower: out / "runs" / tower / "student/tower.safetensors" for tower in ("image", "text")}
    files = {
        ("teacher", "teacher", "teacher"): [Path(teacher.removeprefix("local-dir:")) / "open_clip_model.safetensors"],
        ("image student", "student", "teacher"): [own["image"]],
        ("text student", "teacher", "student"): [own["text"]],
        ("both students", "student", "student"): list(own.values()),
    }
    found = []
    for (name, image, text), parts in files.items():
        size = sum(file.stat().st_size for file in parts) if all(file.is_file() for file in parts) else None
        counts = {"image": parameters[image]["image"], "text": parameters[text]["text"]}
        found.append({"name": name, "parameters": counts, "bytes": size, **pairings[image, text]})
    return found


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the table, and the seconds of each step."""
    table = Table(box=SIMPLE, title="\nrecall in per cent: text→image, image→text")
    table.add_column("towers", no_wrap=True)
    for title in ("image\nparams", "text\nparams", "file\nMB"):
        table.add_column(title, justify="right")
    for title in ("t→i\nR@1", "\nR@5", "\nR@10", "i→t\nR@1", "\nR@5", "\nR@10", "kept"):
        table.add_column(title, justify="right")
    for row in result["rows"]:
        cells = ["–" if count is None else f"{count / 1e6:.2f}M" for count in row["parameters"].values()]
        cells.append("–" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}")
        cells += [f"{row[f'{way}_{name}']:.1f}" for way in ("t2i", "i2t") for name in ("r1", "r5", "r10")]
        kept = row["kept"]["mean_recall"]
        table.add_row(row["name"], *cells, "–" if kept is None else f"{kept:.0f}%")
    console.print(table)
    seconds = result["seconds"]
    times = " · ".join(f"{title} {taken:.0f}" for title, taken in seconds.items())
    console.print(f"seconds: {times} · together {sum(seconds.values()):.0f}\n", highlight=False)


def advice(out: Path, data: str, own_data: bool) -> str:
    """What to try next."""
    if own_data:
        store = shlex.quote(str(out / "store"))
        return (
            "These students were trained for minutes. One in earnest, from the same store:\n"
            f"  clip-distill fit --tower image --data {shlex.quote(data)} --store {store} --out runs/image "
            "--trainer.max_epochs 100"
        )
    return (
        f"Both students are one open_clip model now: local-dir:{out / 'exported'}\n"
        "The same on your own photos and captions (folder layout: clip-distill embed --help):\n"
        "  clip-distill quickstart --data DATA --teacher ViT-B-32/openai --out quickstart-mine"
    )
