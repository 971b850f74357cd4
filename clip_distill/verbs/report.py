"""`clip-distill report`: one page that shows what students kept of their teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.corpus.layout import Sources
from clip_distill.system.arguments import Place, call, listed, places_first, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import read_json, write_json
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.corpus.layout import Corpus
    from clip_distill.evaluation.compare import Teacher
    from clip_distill.towers.spec import Tower

READS = ("runs", "data", "store", "test")  # places that must be there
EXAMPLES = """\
  # one page, runs/text/report.html, and the same as JSON; data and store are those of the run
  clip-distill report runs/text
  # both students, by themselves and together, in Chinese
  clip-distill report runs/image runs/text --language zh --out results/report.html
  # several students side by side, on photos that no epoch was chosen by
  clip-distill report runs/smallest runs/balanced runs/best --test TEST --store stores/test --out results/report.html"""


def command(argv: Sequence[str]) -> Path:
    """The verb with its runs as words: `clip-distill report RUN… [options]`."""
    written: Path = call("report", report, EXAMPLES, places_first("runs", argv), READS)
    return written


def report(
    runs: list[Place],
    data: Place | None = None,
    store: Place | None = None,
    out: Place | None = None,
    test: Place | None = None,
    split: Literal["train", "val"] = "val",
    language: Literal["en", "zh"] = "en",
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 1,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> Path:
    """Write one page that shows what students kept: recall with intervals, charts, the queries that changed most.

    Args:
        runs: Folders of runs, or of exports; words before all options.
        data: Folder of the data; by default the first run's.
        store: What `embed` wrote; by default the first run's.
        out: The page, *.html; by default report.html in the first run's folder. The same as JSON lies beside it.
        test: Another data folder, on whose photos no epoch was chosen; store is then what `embed` made of that.
        split: Which part of the data.
        language: Of the page: en or zh.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Images or captions per forward pass.
        workers: Processes that decode images.
        sources: As for embed: other places for parts of the data; by default the first run's.

    Returns:
        The page.

    Raises:
        Error: There are no photos with captions, or a student is of another teacher.
    """
    from clip_distill.corpus.layout import scan
    from clip_distill.evaluation.compare import Device
    from clip_distill.reporting.findings import Side, both, heat, measure_run, shared_facts
    from clip_distill.reporting.leaks import leaks
    from clip_distill.reporting.page import write_page
    from clip_distill.towers.spec import pick_device

    places = listed(runs)
    if not places:
        raise InvalidValue("expected at least one run: clip-distill report RUN")
    if test is not None and store is None:
        raise InvalidValue("--test: expected --store, too: the one that `clip-distill embed` made of that data")
    data, store, sources = where(places[0], spelt(test or data), spelt(store), sources)
    page = Path(spelt(out) or Path(places[0]) / "report.html")
    if page.suffix != ".html":
        raise InvalidValue(f"--out: expected a page, *.html, found {page}")
    corpus = scan(data, sources)
    guide, skipped = teacher_of(corpus, store, split)
    how = Device(pick_device(device), batch_size, workers)
    known = leaks(guide.benchmark, guide.image, corpus, store) if split == "val" else None
    leaked = known["photos"] if known else []
    teacher = Side.of(guide.image, guide.text)  # type: ignore[arg-type]  # `teacher_of` has seen to it
    found: list[dict[str, Any]] = []
    sides: dict[Tower, list[Side]] = {"image": [], "text": []}
    for place in places:
        for tower in towers_of(Path(place)):
            run, side = measure_run(place, tower, guide, how, leaked)
            run["heat"] = heat(teacher, side, guide.benchmark.image_of_caption)
            found.append(run | {"short": Path(place).name})
            sides[tower].append(side)
    one_each = len(sides["image"]) == len(sides["text"]) == 1
    pair = both({tower: each[0] for tower, each in sides.items()}, guide, leaked) if one_each else None
    shared = shared_facts(guide, data, split, skipped)
    shared["data"]["test"] = test is not None
    findings = {"runs": found, "both": pair, "leaks": known, **shared}
    write_page(page, findings, guide.benchmark, language)
    write_json(page.with_suffix(".json"), findings)
    say(f"{page}: written, and {page.with_suffix('.json').name} beside it")
    return page


def teacher_of(corpus: Corpus, store: str, split: Literal["train", "val"]) -> tuple[Teacher, Counter[str]]:
    """The teacher's embeddings of a split, and how many of its photos can't be read, by reason.

    Raises:
        InvalidValue: There are no photos with captions, or the teacher has not seen the captions.
    """
    from clip_distill.evaluation.compare import stored_teacher

    part = corpus.train if split == "train" else corpus.val
    if part.alone:
        raise InvalidValue(
            "expected photos with captions, which queries are made of, found none; `clip-distill evaluate` compares a "
            "student with its teacher without them"
        )
    skipped = Counter[str]()
    guide = stored_teacher(store, split, part.require_images(), part.require_captions(), skipped, True)
    if guide.text is None:
        raise InvalidValue(
            "the store has none of these captions, so what the teacher finds by them is not known; "
            "`clip-distill evaluate` measures the student alone"
        )
    return guide, skipped


def where(run: str, data: str | None, store: str | None, sources: Sources) -> tuple[str | None, str, Sources]:
    """Data, store and sources as they are given, else as the run's recipe has them.

    Raises:
        InvalidValue: No store is named.
    """
    from clip_distill.recipes import read_recipe

    file = Path(run) / "recipe.yaml"
    recipe = read_recipe(file, runs=False) if file.is_file() else {}
    store = store or recipe.get("store")
    if store is None:
        raise InvalidValue(f"expected --store, since {run} has no recipe.yaml that names one")
    if data is None and sources == Sources():
        data = recipe.get("data")
        sources = Sources(**(recipe.get("sources") or {}))
    return data, store, sources


def towers_of(folder: Path) -> list[Tower]:
    """Which towers a run's folder, or an export's, has.

    Raises:
        InvalidValue: None.
    """
    from clip_distill.exports import TOWERS_FILE
    from clip_distill.towers.spec import SPEC_FILE, TOWERS

    if (folder / TOWERS_FILE).is_file():
        described = read_json(folder / TOWERS_FILE)
        return [tower for tower in TOWERS if tower in described]
    inner = folder / "student" if (folder / "student").is_dir() else folder
    files = [place / SPEC_FILE for place in (inner, *(inner / tower for tower in TOWERS))]
    found: list[Tower] = [read_json(file)["tower"] for file in files if file.is_file()]
    if not found:
        raise InvalidValue(f"{folder}: expected a finished run or an export, found neither")
    return found
