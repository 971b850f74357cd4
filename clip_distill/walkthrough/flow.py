"""The steps of the quickstart, each an ordinary command that is shown before it runs, and the final table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from clip_distill.corpus.layout import Corpus
from clip_distill.system.errors import AlreadyExists
from clip_distill.system.files import read_json, write_json
from clip_distill.system.shown import command, install
from clip_distill.towers.spec import Tower
from clip_distill.train.fill import DEFAULT, facts_of
from clip_distill.train.preset import settings_of
from clip_distill.train.trainer import quiet_lightning
from clip_distill.walkthrough.material import Material
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
        image_samples: Photos that the image student sees at most, counted once per epoch.
        image_batch: Photos per step.
        image_flags: Of `fit`, for the image student; without any, the preset decides.
        text_samples: Captions that the text student sees at most.
        text_batch: Captions per step.
        text_flags: Of `fit`, for the text student.
        few: Photos up to which each is embedded at four views.
    """

    photos: int = 4000
    val_photos: int = 400
    teacher_epochs: int = 5
    image_samples: int = 32_000
    image_batch: int = 64
    image_flags: tuple[str, ...] = (
        *("--preset", "none", "--student.name", "timm", "--student.options.model", "test_resnet"),
    )
    text_samples: int = 128_000
    text_batch: int = 256
    text_flags: tuple[str, ...] = (
        *("--preset", "none", "--student.options.transformer_width", "64", "--student.options.transformer_layers", "2"),
        *("--student.options.transformer_heads", "2", "--optimizer.lr", "4e-3"),
    )
    few: int = 0


# The preset's students, in minutes on a CPU: enough to show that the data and the teacher work, and of few photos all.
REAL = Budget(image_samples=24_000, image_flags=(), text_flags=(), few=2000)


def run(
    out: Path, given: Material | None, teacher: str | None, seed: int, budget: Budget, run_verb: RunVerb
) -> dict[str, Any]:
    """Draw, train, embed, fit the students that the data allows, evaluate, export; then show the table.

    Args:
        out: Folder for everything that is made.
        given: The data, or None to draw scenes.
        teacher: The teacher's name, or None to train one; both are given, or neither.
        seed: Of the scenes, the teacher and the students.
        budget: How much is drawn and trained.
        run_verb: Runs a verb in this process.

    Returns:
        What the table shows: `rows`, `seconds` by step, `exported`.

    Raises:
        FileExistsError: `out` holds something else, or a quickstart of other arguments.
        FileNotFoundError: The data are not there.
    """
    corpus = None if given is None else given.scan()  # before anything is written
    claim(out, {**asdict(given or Material()), "teacher": teacher, "seed": seed, **asdict(budget)})
    quiet_lightning(entirely=True)
    console = Console(width=WIDTH)
    steps = Steps(console, run_verb)
    material = given or Material(data=str(out / "data"))
    if given is None or teacher is None:
        data, folder = out / "data", out / "teacher"
        teacher = f"local-dir:{folder}"
        drawn = (
            f"{budget.photos:,} photos of simple scenes, each with captions, and {budget.val_photos} to measure with."
        )
        with steps.step("draw scenes", drawn):
            draw_dataset(data, budget.photos, budget.val_photos, seed=seed)
        with steps.step("train a teacher", "A small CLIP that knows these scenes. You would take one from a hub."):
            train_teacher(data, folder, budget.teacher_epochs, seed=seed)
    exported = distil(steps, out, material, corpus or material.scan(), teacher, seed, budget)
    result = {
        "rows": [] if material.words else rows(out, teacher, read_json(out / "evaluation.json")),
        "seconds": steps.seconds,
        "exported": exported,
    }
    write_json(out / "result.json", result)
    show(console, result)
    console.print(advice(out, material, given is not None, exported), highlight=False, soft_wrap=True, markup=False)
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


def distil(steps: Steps, out: Path, material: Material, corpus: Corpus, teacher: str, seed: int, budget: Budget) -> str:
    """The real job, verb by verb; returns the exported folder."""
    store = str(out / "store")
    common = (*material.flags(), "--store", store)
    counts: dict[Tower, int] = {"image": corpus.train.images.num_rows, "text": corpus.train.captions.num_rows}
    counts = {tower: count for tower, count in counts.items() if tower in material.towers}
    few = 0 < counts.get("image", 0) <= budget.few
    views: tuple[str, ...] = ("--views", "4", "--augment", "crop_flip") if few else ()
    told = "The teacher looks at every photo and caption once; what it makes of them is stored."
    if material.words:
        told = "The teacher reads every word that it knows, and texts made up of them; what it makes of each is stored."
        views, counts["text"] = ("--prompts", "vocabulary"), 1
    steps.run("embed", told, "embed", *common, "--teacher", teacher, *views)
    students = {tower: str(out / "runs" / tower) for tower, count in counts.items() if count}
    stories = {
        "image": "A smaller image encoder learns from the store alone, the teacher isn't loaded.",
        "text": "A smaller text encoder does the same; neither needs the other.",
    }
    for tower, run_folder in students.items():
        fit = ("--tower", tower, *common, "--seed", str(seed), "--overwrite", "true", "--out", run_folder)
        flags = student_flags(tower, store, counts[tower], budget)
        steps.run(f"fit the {tower} student", stories[tower], "fit", *fit, *flags)
    named = [word for tower, folder in students.items() for word in (f"--{tower}_student", folder)]
    told = "What each finds among photos and captions that it has not seen, beside the teacher."
    if not material.words:  # `fit` has said how near the student is on texts that it has not seen
        steps.run("evaluate", told, "evaluate", *common, *named, "--out", str(out / "evaluation.json"))
    told = "A folder that open_clip loads, in the teacher's place."
    folder = str(out / "exported")
    steps.run("export", told, "export", "--store", store, *named, "--out", folder, "--overwrite", "true")
    return folder


def student_flags(tower: Tower, store: str, rows: int, budget: Budget) -> tuple[str, ...]:
    """Flags of `fit`: what the budget says of the student, and how long it trains where the preset takes longer."""
    image = tower == "image"
    flags = budget.image_flags if image else budget.text_flags
    samples, batch = (budget.image_samples, budget.image_batch) if image else (budget.text_samples, budget.text_batch)
    if not flags:
        settings, _ = settings_of(DEFAULT, facts_of({"tower": tower, "store": store, "out": ""}))
        if settings["trainer"]["max_epochs"] * rows <= samples:
            return ()
    return (*flags, *length(rows, samples, batch))


def length(rows: int, samples: int, batch: int) -> tuple[str, ...]:
    """Flags for `fit` to see about `samples` of `rows`: whole epochs, or a part of one where the data are larger."""
    flags = ("--loader.batch_size", str(batch), "--trainer.max_epochs", str(max(1, round(samples / rows))))
    return flags if rows <= samples else (*flags, "--trainer.limit_train_batches", str(math.ceil(samples / batch)))


def rows(out: Path, teacher: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per pairing of towers: name, parameters of both, bytes of what is new in it, recall and share kept; none
    where there was nothing to find."""
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
        if (image, text) not in pairings:
            continue
        size = sum(file.stat().st_size for file in parts) if all(file.is_file() for file in parts) else None
        counts = {"image": parameters[image]["image"], "text": parameters[text]["text"]}
        found.append({"name": name, "parameters": counts, "bytes": size, **pairings[image, text]})
    return found


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the table, and the seconds of each step."""
    if result["rows"]:
        console.print(recall_table(result))
    seconds = result["seconds"]
    times = " · ".join(f"{title} {taken:.0f}" for title, taken in seconds.items())
    console.print(f"seconds: {times} · together {sum(seconds.values()):.0f}\n", highlight=False)


def recall_table(result: dict[str, Any]) -> Table:
    """A row per pairing of towers."""
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
    return table


def advice(out: Path, material: Material, own_data: bool, exported: str) -> str:
    """What to try next."""
    search, mine = (
        install("search", "onnxruntime", "fastapi"),
        ["--teacher", "ViT-B-32/openai", "--out", "quickstart-mine"],
    )
    if not own_data:
        return (
            f"Both students are one open_clip model now: local-dir:{exported}\n"
            f"Search its pictures with it{search}:\n"
            f"  {command('search', out / 'data/image', '--student', exported)}\n"
            "The same on your own photos, or sentences, or both:\n"
            f"  {command('quickstart', '--photos', 'PHOTOS', *mine)}\n"
            f"or photos with their captions (folder layout: {command('embed', '--help')}):\n"
            f"  {command('quickstart', '--data', 'DATA', *mine)}"
        )
    runs = {tower: out / "runs" / tower for tower in ("image", "text") if (out / "runs" / tower).is_dir()}
    named = [word for tower, folder in runs.items() for word in (f"--{tower}_student", folder)]
    places = [material.photos] if material.photos else [str(Path(material.data) / "image")] if material.data else []
    lines = [
        f"Search your photos with it{search}:",
        f"  {command('search', *places, *named)}",
    ] if places and "image" in runs else []  # fmt: skip
    lines += [
        f"Files for ONNX Runtime{install('onnx', 'onnx', 'onnxscript')}:",
        f"  {command('export', *named, '--to', 'onnx', '--out', out / 'onnx')}",
        "A larger student, from the same store:",
    ]
    tower = next(iter(runs))
    rest = ["--preset", "best", *material.flags(), "--store", out / "store", "--out", f"runs/{tower}"]
    lines.append(f"  {command('fit', '--tower', tower, *rest)}")
    return "\n".join(lines)
