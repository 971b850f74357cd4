"""From what is asked of `plan` to what is measured: one job for the embedding, one for each student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from clip_distill.corpus.layout import require_folder
from clip_distill.losses import needed
from clip_distill.planning.embedding import EmbedJob, EmbedMeasures, measure_embed
from clip_distill.planning.options import OWN, Options
from clip_distill.planning.report import make_report
from clip_distill.planning.training import FitJob, measure_fit
from clip_distill.recipe import Recipe
from clip_distill.system.arguments import Parser
from clip_distill.system.errors import InvalidValue
from clip_distill.system.processes import in_own_process
from clip_distill.system.talk import say
from clip_distill.towers.spec import TOWERS, Tower
from clip_distill.train.fill import DEFAULT
from clip_distill.train.preset import Facts, settings_of, without


@dataclass(frozen=True)
class Words:
    """What was asked for, as words or as keywords.

    Args:
        arguments: The parser of the settings.
        read: Parses them, above those of a tower's own recipe where one is named, and above a preset's.
        given: What is given alone, nested, with that recipe; and whether there is a recipe.
    """

    arguments: Parser
    read: Callable[[str | None, Mapping[str, Any]], Any]
    given: Callable[[str | None], tuple[dict[str, Any], bool]]

    def config(self, file: str | None, settings: Mapping[str, Any] | None = None) -> Any:
        return self.arguments.instantiate(self.read(file, settings or {}))


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


def measure(options: Options, configs: dict[Tower, Any], words: Words) -> dict[str, Any]:
    """Measure, then extrapolate; see `plan.report.make_report`.

    Args:
        options: Of embed, and of measuring.
        configs: Tower to distil → its recipe's keys, and `trainer`.
        words: What was asked for, which a preset may stand below.

    Raises:
        ValueError: An option does not fit, or a process was killed while measuring.
    """

    check(options)
    recipes = {tower: recipe(options, config, tower) for tower, config in configs.items()}
    for each in recipes.values():
        check_recipe(each)
    job = embed_job(options, list(recipes.values()))
    require_folder(job.data)  # here, where it takes no seconds
    embed = in_own_process(measure_embed, job)
    jobs = []
    for tower in (tower for tower in recipes if f"{tower}-train" in embed.items):
        config = with_preset(options, configs[tower], words, tower, embed)
        jobs.append(fit_job(options, recipe(options, config, tower), config, embed))
    return make_report(job, embed, [(each, in_own_process(measure_fit, each)) for each in jobs])


def with_preset(options: Options, config: Any, words: Words, tower: Tower, embed: EmbedMeasures) -> Any:
    """A tower's settings, with those of a preset where `fit` would go by one; what it chose is said."""

    file = options.image_recipe if tower == "image" else options.text_recipe
    given, has_recipe = words.given(file)
    preset = options.preset or ("none" if has_recipe else DEFAULT)
    if preset == "none":
        return config
    teacher = embed.manifests[f"{tower}-train"].teacher
    rows = max(1, round(embed.items[f"{tower}-train"] * (embed.readable if tower == "image" else 1)))
    paired = ("text-train" if tower == "image" else "image-train") in embed.items
    views = options.views if tower == "image" else 1
    settings, lines = settings_of(
        preset, Facts(tower, teacher, rows, views, paired, bool(given.get("translations")), "OUT")
    )
    say(*lines)
    settings = without(settings, given)
    settings["loader"].pop("features", None)  # what a plan measures is not packed
    return words.config(file, settings)


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

    given = {each.name: config[each.name] for each in fields(Recipe) if each.name not in OWN}
    return Recipe(tower=tower, store=options.store or "", out=options.out or "", seed=config["seed"], **given)
