"""`clip-distill benchmark`: what teacher and students cost where they run, in torch and in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.system.arguments import Place, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.benchmarking.measure import Subject
    from clip_distill.benchmarking.report import BenchmarkReport
    from clip_distill.towers.spec import Tower

READS = ("image_student", "text_student", "data")  # places that must be there
EXAMPLES = """\
  # a text student against the teacher, on captions of the data
  clip-distill benchmark --store stores/b32 --text_student runs/text --data DATA --out benchmark
  # both students, on two threads; the student says which teacher it has
  clip-distill benchmark --image_student runs/image --text_student runs/text --threads 2 --out benchmark
  # without ONNX Runtime, on a GPU
  clip-distill benchmark --store stores/b32 --image_student runs/image --runtimes '[eager, compile]' --device cuda \\
    --batch_sizes '[1, 32, 256]' --out benchmark
  # a teacher alone
  clip-distill benchmark --teacher ViT-B-32/openai --runtimes '[eager, onnx-int8]' --out benchmark"""
TABLE_FILE, CHART_FILE = "benchmark.json", "benchmark.png"


def benchmark(
    out: Place,
    store: Place | None = None,
    teacher: str | None = None,
    image_student: Place | None = None,
    text_student: Place | None = None,
    data: Place | None = None,
    runtimes: list[Literal["eager", "compile", "onnx", "onnx-int8"]] | None = None,
    batch_sizes: list[int] | None = None,
    text_length: int = 16,
    threads: int | None = None,
    repeats: int = 50,
    rows: int = 256,
    device: str = "auto",
    spin: bool = False,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> BenchmarkReport:
    """Measure parameters, FLOPs, file size, latency and memory of teacher and students in torch and ONNX Runtime.

    Each variant runs in a process of its own. They take turns, so that other work slows them down alike; all of one
    tower's are in memory at once. Which of the teacher's towers are measured follows from the students; without one,
    both are.

    Args:
        out: Folder for benchmark.json and benchmark.png.
        store: What `embed` wrote; it names the teacher. By default the student does.
        teacher: The teacher's name, where it has another one now than the store or the student says.
        image_student: Run folder of an image student, or any teacher's name (local-dir:exported).
        text_student: Run folder of a text student, or any teacher's name.
        data: Folder in the documented layout, whose validation photos and captions are embedded in order to compare
            the runtimes; without it, noise and made-up sentences, for which int8 looks better than it is.
        runtimes: Any of eager, compile, onnx and onnx-int8; all four by default. eager is what others are held to.
        batch_sizes: Images or captions at a time; [1, 32] by default.
        text_length: Tokens of a typical caption: text towers that may be cut are measured at it, too.
        threads: Threads of a forward pass; by default what torch takes.
        repeats: Forward passes timed, in turns of 5; slow variants have fewer.
        rows: Photos and captions embedded for the comparison.
        device: auto, cpu, cuda, cuda:1, mps.
        spin: Let waiting threads spin, which about doubles times on a busy machine.
        sources: Other places for parts of the data.

    Returns:
        The report; its `to_dict()` is what benchmark.json gets: machine, settings, variants.

    Raises:
        Error: A setting does not fit, or a student is of another teacher.

    Example:
        >>> report = cd.benchmark(out=OUT, text_student=RUN, runtimes=["eager"], batch_sizes=[1], repeats=5, threads=1)
        >>> [each["role"] for each in report.to_dict()["variants"]]
        ['teacher', 'student']
    """
    import torch

    from clip_distill.benchmarking import chart
    from clip_distill.benchmarking.inputs import Inputs
    from clip_distill.benchmarking.measure import RUNTIMES, Settings, measure
    from clip_distill.benchmarking.report import BenchmarkReport, add_speedups, machine
    from clip_distill.system.files import write_json
    from clip_distill.towers.spec import pick_device

    store, image_student, text_student, data = map(spelt, (store, image_student, text_student, data))
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InvalidValue(f"--out: expected a folder, found the file {out}")
    settings = Settings(
        runtimes=tuple(runtimes or RUNTIMES),
        batch_sizes=tuple(batch_sizes or (1, 32)),
        tokens=text_length,
        threads=threads or torch.get_num_threads(),
        repeats=repeats,
        device=str(pick_device(device)),
        spin=spin,
    )
    settings.require_sound()
    if not chart.available():
        say(f"no chart will be drawn: matplotlib is missing ({chart.INSTALL})")
    inputs = Inputs.of(data, sources, rows)
    report: dict[str, Any] = {"machine": machine(), "settings": dataclasses.asdict(settings), "variants": []}
    subjects = _subjects({"image": image_student, "text": text_student}, store, teacher)
    for _, each in itertools.groupby(subjects, lambda subject: subject.spec.tower):
        report["variants"] += measure(each, inputs, settings)
    add_speedups(report["variants"])
    write_json(folder / TABLE_FILE, report)
    if chart.available():
        chart.draw(report, folder / CHART_FILE)
    picture = str(folder / CHART_FILE) if chart.available() else None
    return BenchmarkReport(report, str(folder / TABLE_FILE), picture)


def _subjects(students: dict[Tower, str | None], store: str | None, teacher: str | None) -> Iterator[Subject]:
    """Towers to measure, one in memory at a time: by tower, the teacher's first."""
    from clip_distill.benchmarking.measure import Subject
    from clip_distill.evaluation.loading import load_student, require_taught_by, teacher_of_store
    from clip_distill.teachers import load_teacher
    from clip_distill.towers.spec import TOWERS

    chosen = {tower: name for tower, name in students.items() if name is not None}
    loaded = {tower: load_student(name, tower) for tower, name in chosen.items()}
    name = teacher
    if name is None:
        info = teacher_of_store(store) if store is not None else None
        info = info or next((spec.teacher for spec, _ in loaded.values() if spec.teacher), None)
        if info is None:
            raise InvalidValue("expected --store, --teacher, or a student that says which teacher it has; found none")
        if info.get("ensemble"):
            raise InvalidValue(f"{info['name']} is several teachers; name the one to measure with --teacher")
        name = info["name"]
    for tower in TOWERS:
        if chosen and tower not in chosen:
            continue
        spec, module = load_teacher(name, tower)
        if tower in chosen:
            require_taught_by(f"student {chosen[tower]}", loaded[tower][0], spec.teacher)
        yield Subject("teacher", name, spec, module)
        if tower in chosen:
            yield Subject("student", chosen[tower], *loaded[tower])
