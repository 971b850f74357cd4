"""`clip-distill plan`: hours, disk, memory and batch size of embed and fit, from a few measured batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.recipes import add_recipe, read_recipe
from clip_distill.system.arguments import Place, layer, new_parser, parse_keys
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.planning.embedding import EmbedJob, EmbedMeasures
    from clip_distill.planning.report import PlanReport
    from clip_distill.planning.training import FitJob
    from clip_distill.recipe import Recipe
    from clip_distill.system.arguments import Parser
    from clip_distill.towers.spec import Tower

DESCRIPTION = """Measure a few batches of every stage on this machine, and state what embed and fit will take: hours,
disk, peak memory, and the largest batch that fits. Nothing is stored."""
EXAMPLES = """\
  # both towers, with the default students
  clip-distill plan --data DATA --teacher ViT-B-32/openai
  # five views an image, and the student of a recipe
  clip-distill plan --recipe flickr8k_text --teacher ViT-B-32/openai --views 5 --augment crop_flip
  # both towers, each with the student, loss and loader of its own recipe
  clip-distill plan --data DATA --teacher ViT-B-32/openai --image_recipe image.yaml --text_recipe text.yaml
  # a student of your own, on a GPU; the plan as JSON
  clip-distill plan --data DATA --teacher ViT-L-14/openai --tower image --student.options.width 384 \\
    --loader.batch_size 512 --trainer.max_epochs 30 --trainer.precision bf16-mixed --device cuda --out plan.json"""
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


def parser() -> Parser:
    """The options of embed that cost something, and a recipe's keys."""
    from clip_distill.recipe import Recipe
    from clip_distill.train.settings import add_trainer

    result = new_parser("plan", DESCRIPTION, EXAMPLES)
    add_recipe(result)
    result.add_class_arguments(Options, as_group=False)
    result.add_class_arguments(Recipe, as_group=False, skip=set(OWN))
    result.set_defaults(data=None)
    add_trainer(result)
    return result


def plan(recipe: Place | None = None, *, trainer: Mapping[str, Any] | None = None, **keys: Any) -> PlanReport:
    """Measure a few batches of every stage on this machine, and state what embed and fit will take; nothing is stored.

    Keywords are those of `embed` that cost something (`teacher`, `views`, `batch_size`, …), `seconds` for each stage,
    and a recipe's keys as `fit` takes them; `clip-distill plan --help` lists them.

    Args:
        recipe: A YAML's path, or the name of one that the package ships; keywords override it.
        trainer: Arguments of Lightning's Trainer.
        keys: All others; `data` and `teacher` at least.

    Returns:
        Hours, disk, peak memory and the largest batch that fits; `to_dict()` has every number.

    Raises:
        Error: A setting does not exist or does not fit, or the data are not there.

    Example:
        >>> hours = cd.plan(data=DATA, teacher=TEACHER, tower="text", seconds=0.1).to_dict()["fit"]["text"]
    """
    arguments = parser()
    base = {} if recipe is None else read_recipe(recipe)
    given = layer({"trainer": trainer or {}, **keys}, base)

    def read(file: str | None) -> Any:
        return parse_keys(arguments, given if file is None else layer(given, read_recipe(file)))

    return state(arguments, read)


def command(argv: Sequence[str]) -> PlanReport:
    """What `clip-distill plan` does."""
    arguments = parser()

    def read(file: str | None) -> Any:
        return arguments.parse_args(argv if file is None else ["--recipe", file, *argv])

    return state(arguments, read)


def state(arguments: Parser, read: Callable[[str | None], Any]) -> PlanReport:
    """Measure and state.

    Args:
        arguments: The parser of the settings.
        read: Parses them, above those of a tower's own recipe where one is named.
    """
    from clip_distill.planning.report import PlanReport
    from clip_distill.system.files import write_json

    config = arguments.instantiate(read(None))
    options = Options(**{each.name: config[each.name] for each in fields(Options)})
    report = measure(options, configs_of(options, config, lambda file: arguments.instantiate(read(file))))
    if options.out and options.out.endswith(".json"):
        write_json(Path(options.out), report)
        return PlanReport(report, options.out)
    if options.out:
        say(f"{options.out} is the run's folder; to write the plan, name a file: --out plan.json")
    return PlanReport(report)


def configs_of(options: Options, config: Any, read: Callable[[str], Any]) -> dict[Tower, Any]:
    """Tower → what is given for its student: a recipe of its own, where there is one, below the flags.

    Raises:
        ValueError: What is given can't be for both students, or the recipes are of different data.
    """
    files: dict[Tower, str | None] = {"image": options.image_recipe, "text": options.text_recipe}
    if options.tower != "both":
        if any(files.values()):
            raise InvalidValue(f"--image_recipe and --text_recipe: expected --tower both, found {options.tower}")
        return {options.tower: config}
    if config["student"].name or config["student"].options:
        raise InvalidValue(
            "--student says what one tower's student is: say which with --tower image or --tower text, or give each "
            "student its recipe, --image_recipe and --text_recipe"
        )
    configs = {tower: read(file) if file else config for tower, file in files.items()}
    for tower, each in configs.items():
        if each["tower"] not in (tower, "both"):
            raise InvalidValue(f"--{tower}_recipe {files[tower]}: expected tower: {tower}, found {each['tower']}")
    image, text = configs.values()
    if (image["data"], image["sources"]) != (text["data"], text["sources"]):
        raise InvalidValue(
            f"expected both students' recipes to name the same data, found {image['data']} and {text['data']}: "
            "say which with --data and --sources"
        )
    return configs


def measure(options: Options, configs: dict[Tower, Any]) -> dict[str, Any]:
    """Measure, then extrapolate; see `plan.report.make_report`.

    Args:
        options: Of embed, and of measuring.
        configs: Tower to distil → its recipe's keys, and `trainer`.

    Raises:
        ValueError: An option does not fit, or a process was killed while measuring.
    """
    from clip_distill.planning.embedding import measure_embed
    from clip_distill.planning.report import make_report
    from clip_distill.planning.training import measure_fit
    from clip_distill.system.processes import in_own_process

    check(options)
    recipes = {tower: recipe(options, config, tower) for tower, config in configs.items()}
    for each in recipes.values():
        check_recipe(each)
    job = embed_job(options, list(recipes.values()))
    embed = in_own_process(measure_embed, job)
    there = [tower for tower in recipes if f"{tower}-train" in embed.items]
    jobs = [fit_job(options, recipes[tower], configs[tower], embed) for tower in there]
    return make_report(job, embed, [(each, in_own_process(measure_fit, each)) for each in jobs])


def check(options: Options) -> None:
    """What would otherwise fail only after minutes."""
    if options.views < 1 or (options.views > 1 and options.augment == "none"):
        raise InvalidValue(
            "expected views ≥ 1, and an augmentation where views > 1; "
            f"found views={options.views}, augment={options.augment!r}"
        )
    if min(options.batch_size, options.shard_rows) < 1 or options.seconds <= 0:
        raise InvalidValue(
            "expected batch_size and shard_rows of 1 or more and seconds above 0, found "
            f"{options.batch_size}, {options.shard_rows} and {options.seconds}"
        )


def check_recipe(given: Recipe) -> None:
    """What can't be measured before there is a store."""
    if given.target != "stored":
        raise InvalidValue(
            "expected target: stored, found online: the planner measures students that learn from a store"
        )
    if given.loader.packed is not None or given.loader.features is not None:
        raise InvalidValue(
            "expected neither loader.packed nor loader.features: a plan writes nothing, so there is no packed "
            "copy to measure. Leave them out: --loader.packed null --loader.features null"
        )


def embed_job(options: Options, recipes: list[Recipe]) -> EmbedJob:
    """What `embed` is to do for the recipes: a loss with a bank needs the other tower's training table as well."""
    from clip_distill.losses import needed
    from clip_distill.planning.embedding import EmbedJob
    from clip_distill.towers.spec import TOWERS

    shared = {each.name for each in fields(EmbedJob)} & {each.name for each in fields(Options)}
    banks = any("bank" in needed(each.loss.names) for each in recipes)
    return EmbedJob(
        data=recipes[0].data,
        sources=recipes[0].sources,
        towers=TOWERS if banks else tuple(each.one for each in recipes),
        **{name: getattr(options, name) for name in shared},
    )


def fit_job(options: Options, given: Recipe, config: Any, embed: EmbedMeasures) -> FitJob:
    """What `fit` is to do.

    Raises:
        InvalidValue: A loss compares with the other tower's embeddings, and the data has none.
    """
    from clip_distill.losses import needed
    from clip_distill.planning.training import FitJob

    trainer = config["trainer"].as_dict()
    other_rows = embed.items.get("text-train" if given.tower == "image" else "image-train", 0)
    if (banked := [name for name in given.loss.names if "bank" in needed([name])]) and not other_rows:
        what = "captions" if given.tower == "image" else "photos"
        raise InvalidValue(
            f"{', '.join(banked)}: expected {what} in the data, whose embeddings this loss compares with, found none. "
            "Leave it out of --loss.names"
        )
    return FitJob(
        recipe=given,
        trainer=trainer,
        teacher=next(iter(embed.manifests.values())).teacher,
        views=options.views,
        augment=options.augment,
        seed=options.seed,
        good_rows=embed.good_rows,
        readable=embed.readable,
        other_rows=other_rows,
        device="cpu" if trainer.get("accelerator") == "cpu" else options.device,
        seconds=options.seconds,
    )


def recipe(options: Options, config: Any, tower: Tower) -> Recipe:
    from clip_distill.recipe import Recipe

    given = {each.name: config[each.name] for each in fields(Recipe) if each.name not in OWN}
    return Recipe(tower=tower, store=options.store or "", out=options.out or "", seed=config["seed"], **given)
