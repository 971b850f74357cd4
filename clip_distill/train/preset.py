"""Presets: a student, first weights, loss and schedule, derived from the teacher in the store and the amount of data.

A preset fills what neither a flag nor a recipe says. The figures behind the shares are those of the shipped recipes
`flickr8k_{image,text}_{smallest,balanced,best}`, which these rules give for the teacher that they are made for.
Shapes: N training rows, W the teacher's width, D embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import timm

from clip_distill.students.cut import own_backbone, stage_depths
from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import Tower

Preset = Literal["smallest", "balanced", "best"]
PRESETS: tuple[Preset, ...] = ("smallest", "balanced", "best")
Settings = dict[str, Any]
SIZES = ("giant", "huge", "large", "base", "small", "tiny")  # words in timm's names, in their order
LARGE = 100_000  # rows from which batches are four times as large
FEWEST_STEPS = 120  # of a student cut from its teacher; 1,000 photos take that many in 8 epochs, and gain no more in 20
# Share of an epoch that made-up texts have beside captions: of 0.5 and 0.67 the second taught the balanced student more
# words (51% of the neighbours of common ones instead of 36%) and cost no recall.
PROMPTED: dict[Preset, float] = {"smallest": 0.5, "balanced": 0.67, "best": 0.67}
MOST_FEATURES = 200_000  # views, of which frozen stages are computed once and kept: some 30 KB each


@dataclass(frozen=True)
class Facts:
    """What a preset is derived from.

    Args:
        tower: To distil.
        teacher: The teacher's record.
        rows: N.
        views: Stored views of each.
        paired: Whether the store has the other tower's training table, which some losses compare with.
        foreign: Whether captions are in a language of their own.
        prompts: How many made-up texts the store has.
        out: The run's folder.
    """

    tower: Tower
    teacher: Mapping[str, Any]
    rows: int
    views: int
    paired: bool
    foreign: bool
    out: str
    prompts: int = 0


def settings_of(preset: str, facts: Facts) -> tuple[Settings, list[str]]:
    """A preset's settings, nested as a recipe's, and what they are and why, a line each.

    Raises:
        InvalidValue: There is no such preset.
    """
    known = next((each for each in PRESETS if each == preset), None)
    if known is None:
        raise InvalidValue(f"--preset: expected {', '.join(PRESETS)} or none, found {preset!r}")
    student, about = (_image_student if facts.tower == "image" else _text_student)(known, facts)
    loss, compared = _loss(known, facts)
    schedule, spent = _schedule(known, facts, student["name"])
    rows = f"{facts.rows:,} {'photos' if facts.tower == 'image' else 'captions'}"
    if facts.tower == "text" and facts.prompts:
        rows = f"{rows} with {facts.prompts:,} made-up texts" if facts.rows else f"{facts.prompts:,} made-up texts"
    lines = [
        f"preset {preset}, from the teacher {facts.teacher['name']} and {rows}:",
        f"  student: {about}",
        f"  loss: {' + '.join(loss['names'])}, {compared}",
        f"  training: {spent}",
        f"  any flag overrides it; {facts.out}/recipe.yaml has all of it",
    ]
    return {"student": student, "loss": loss, **schedule}, lines


def without(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """A preset's settings less those that what the user gives takes the ground from.

    Args:
        settings: Nested, as `settings_of` has them.
        given: What the user gives, nested.
    """
    student, loss, loader = (dict(settings[key]) for key in ("student", "loss", "loader"))
    chosen, losses = given.get("student") or {}, given.get("loss") or {}
    if chosen.get("name", student["name"]) != student["name"]:
        student, loader = {}, {key: value for key, value in loader.items() if key != "features"}
    if chosen.get("init") == "random":
        student = {key: value for key, value in student.items() if key not in ("select", "freeze")}
    if not chosen.get("freeze", student.get("freeze")) or given.get("target") == "online":
        loader.pop("features", None)
    if given.get("target") == "online":
        student.pop("probe", None)
    if "tokenizer" in chosen or "vocab_size" in (chosen.get("options") or {}):
        student = {key: value for key, value in student.items() if key not in ("vocabulary", "min_count")}
    if "names" in losses:
        options = {name: value for name, value in loss["options"].items() if name in losses["names"]}
        loss = {"options": options, "bank": loss["bank"]}
    kept = settings | {"student": student, "loss": loss, "loader": loader}
    if str((given.get("trainer") or {}).get("precision")) in ("bf16-true", "16-true"):  # weights too coarse to average
        kept.pop("ema", None)
    return kept


def _text_student(preset: Preset, facts: Facts) -> tuple[Settings, str]:
    """open_clip's transformer, a share of the teacher's width and depth."""
    text = facts.teacher["model_cfg"].get("text_cfg", {})
    own = {"width", "heads", "layers"} <= text.keys() and "hf_model_name" not in text
    W, heads, depth = (text[key] for key in ("width", "heads", "layers")) if own else (512, 8, 12)
    width = W * 3 // 4 if facts.foreign and preset != "smallest" else W // (4 if preset == "smallest" else 2)
    layers = {"smallest": max(4, depth // 3), "balanced": max(4, depth // 2), "best": max(6, depth * 2 // 3)}[preset]
    tokens = facts.teacher["tokenizer"]
    student: Settings = {"name": "transformer"}
    student |= {"init": "teacher", "select": "principal"} if own and "ensemble" not in facts.teacher else {}
    options = {"transformer_width": width // heads * heads, "transformer_layers": layers, "transformer_heads": heads}
    options["context_length"] = tokens["context_length"]
    if facts.foreign:
        student["tokenizer"], words = "train", "a tokenizer of the captions' own"
    else:
        rank = min(options["transformer_width"], {"smallest": 16, "balanced": 40, "best": 64}[preset])
        options |= {"vocab_size": tokens["vocab_size"], "embedding_rank": rank}
        student["word_dropout"] = 0.05 if preset == "smallest" else 0.1
        words = f"all of the teacher's {tokens['vocab_size']:,} tokens, in {rank} directions"
    start = "cut from its weights" if "init" in student else "from random weights: its text tower is of another make"
    about = f"transformer, width {options['transformer_width']} of {W}, {layers} layers of {depth}, {start}; {words}"
    return student | {"options": options}, about


def _image_student(preset: Preset, facts: Facts) -> tuple[Settings, str]:
    """The teacher's own backbone, less its last part; a smaller ViT; or the same family smaller."""
    model = own_backbone(facts.teacher)
    first = {"init": "teacher"} if "ensemble" not in facts.teacher else {}
    if model is not None and timm.is_model(model):
        try:
            return _cut(preset, facts, model, first)
        except InvalidValue:  # no plain stack of stages
            relative = _relative(preset, model)
            if relative is not None:
                own_size = timm.get_pretrained_cfg_value(relative, "input_size") or (3, 224, 224)
                options = {"model": relative, "input_resolution": own_size[-1]}
                return {
                    "name": "timm",
                    "options": options,
                } | first, f"{relative}, of the same family as its {model}, which can't be cut"
    vision = facts.teacher["model_cfg"].get("vision_cfg", {})
    if model is None and isinstance(vision.get("layers"), int) and {"width", "patch_size"} <= vision.keys():
        return _vit(preset, vision, first)
    name = {"smallest": "mobilenetv2_050", "balanced": "mobilenetv2_100", "best": "mobilenetv2_140"}[preset]
    return {
        "name": "timm",
        "options": {"model": name},
    }, f"{name}, from random weights: its {model or 'image tower'} can't be cut"


def _cut(preset: Preset, facts: Facts, model: str, first: Settings) -> tuple[Settings, str]:
    whole = stage_depths(model)
    if len(whole) < 3:
        raise InvalidValue(f"{model}: too few stages")
    kept = shortened(whole, preset)
    D = facts.teacher["embed_dim"]
    student = {"name": "timm_cut", "freeze": len(kept) - 2 if first else 0, "probe": 4096} | first
    options = {"model": model, "depths": kept, "hidden": D if preset == "smallest" else 2 * D}
    frozen = f"; stem and first {len(kept) - 2} keep their weights" if first else ""
    return student | {"options": options}, f"{kept} blocks of its {model}'s stages {whole}{frozen}"


def shortened(whole: list[int], preset: Preset) -> list[int]:
    """How many blocks of each stage stay, of a backbone with three stages or more.

    Most of its numbers are in its last stages. Of many stages (EfficientNet, MobileNet) the last is left out; of few
    (ResNet, ConvNeXt, FastViT), where it holds most of the channels, only by the smallest.
    """
    few = len(whole) < 6
    kept = whole[:-1] if not few or preset == "smallest" else list(whole)
    share = {"smallest": (2 / 3, 1 / 4), "balanced": (1, 1 / 2), "best": (1, 3 / 4)}[preset]
    if few:
        share = {"smallest": (1, 1 / 2), "balanced": (1 / 2, 1 / 3), "best": (3 / 4, 2 / 3)}[preset]
    last = [max(1, math.ceil(each * depth - 1e-9)) for each, depth in zip(share, kept[-2:], strict=True)]
    return kept[:-2] + last


def _vit(preset: Preset, vision: Mapping[str, Any], first: Settings) -> tuple[Settings, str]:
    W, depth, side = vision["width"], vision["layers"], vision.get("image_size", 224)
    side = side if isinstance(side, int) else side[0]
    heads = W // vision.get("head_width", 64)
    width = W * (1 + PRESETS.index(preset)) // 4 // heads * heads
    layers = min(8, max(6, depth * 2 // 3) if preset == "best" else max(4, depth // 2))
    least = max(vision["patch_size"], 16 if preset == "best" else 32)  # small patches cost what width does not
    patch = next((each for each in range(least, side) if side % each == 0), side)
    options = {"input_resolution": side, "patch_size": patch, "width": width, "layers": layers, "heads": heads}
    student = {"name": "vit", "probe": 16384, "options": options} | first
    student |= {"select": "principal"} if first else {}
    return student, f"ViT, width {width} of {W}, {layers} layers of {depth}, patches of {patch}, cut from its weights"


def _relative(preset: Preset, model: str) -> str | None:
    """A smaller model of the same family by timm's names: `vit_base_patch16_siglip_224` → `vit_tiny_patch16_224`."""
    size = next((word for word in SIZES if re.search(rf"(^|_){word}(_|$)", model)), None)
    if size is None:
        return None
    smaller = SIZES[SIZES.index(size) + 1 :]
    head, tail = model.split(size, 1)
    first_of_tail = "_".join(tail.split("_")[:2])  # `_patch16`
    known = timm.list_models(f"{head}*")
    found = []
    for word in smaller:
        close = [name for name in known if name.startswith(f"{head}{word}{first_of_tail}")]
        if close:
            found.append(min(close, key=len))
    return None if not found else found[{"smallest": -1, "balanced": len(found) // 2, "best": 0}[preset]]


def _loss(preset: Preset, facts: Facts) -> tuple[Settings, str]:
    """The embedding itself, and what it is like to others: of the other tower where the store has them."""
    temperature = 1 / facts.teacher["logit_scale"]
    loss: Settings
    if facts.tower == "image":
        loss = {"names": ["cosine", "affinity", "queue_kl"], "weights": [0.5, 1.4, 0.6], "bank": 4096}
        loss["options"] = {"affinity": {"temperature": temperature}, "queue_kl": {"size": 0, "temperature": 0.03}}
        if preset == "best":
            loss["bank"] = 16384
    else:
        bank = {"temperature": max(0.02, 0.7 * temperature)}
        loss = {"names": ["cosine", "gram_kl", "bank_kl"], "weights": [1.0, 1.0, 1.0], "bank": 6000}
        loss["options"] = {"gram_kl": {"temperature": 0.05}, "bank_kl": bank}
    other = "captions" if facts.tower == "image" else "photos"
    if facts.paired:
        return loss, f"compared with the stored {other}, too"
    place = 1 if facts.tower == "image" else 2  # of the loss that compares with them
    dropped = loss["names"].pop(place)
    loss["weights"].pop(place)
    if facts.tower == "image":
        loss["weights"][0] = 2.0  # of 1,000 photos: cosine 0.69 instead of 0.67 after 6 epochs
    del loss["options"][dropped]
    return loss, f"without {dropped}: the store has no {other} to train on"


def _schedule(preset: Preset, facts: Facts, student: str) -> tuple[Settings, str]:
    """Epochs fall with the root of the data, so that steps grow with it; of few photos there are steps enough."""
    drawn = 0
    if facts.tower == "image":
        frozen = student == "timm_cut"
        batch = 64 if frozen or facts.rows < LARGE else 256
        enough = -(-FEWEST_STEPS // -(-facts.rows // batch))  # epochs
        usual, least, most = (8 * math.sqrt(6000 / facts.rows), 3, max(8, enough)) if frozen else (60.0, 30, 100)
        share = 1.0 if frozen else {"smallest": 0.5, "balanced": 1.0, "best": 1.67}[preset]
        optimizer = {"lr": 1e-3, "weight_decay": 0.05, "warmup": 0.05}
    else:
        rows = facts.rows or facts.prompts
        batch = 256 if rows < LARGE or not facts.rows else 1024
        beside = PROMPTED[preset] if facts.prompts and facts.rows else 0.0
        drawn = min(facts.prompts, round(facts.rows * beside / (1 - beside)))
        usual, least, most = (8 if beside else 10) * math.sqrt(30_000 / rows), 3, 40
        share = 1.0 if preset == "balanced" else 1.5
        optimizer = {"lr": 2e-3 if preset == "smallest" else 1e-3, "weight_decay": 0.1, "warmup": 0.1}
    epochs = min(most, max(least, round(usual * share)))
    seen = facts.rows + drawn if facts.rows else facts.prompts
    steps = epochs * -(-seen // batch)
    loader: Settings = {"batch_size": batch}
    if student == "timm_cut" and facts.rows * facts.views <= MOST_FEATURES:
        loader["features"] = f"{facts.out}/features"
    spent = f"{epochs} epochs, {steps:,} steps of {batch}"
    settings: Settings = {"optimizer": optimizer, "loader": loader, "trainer": {"max_epochs": epochs}}
    if facts.tower == "text":
        settings["ema"] = 0.995
        if facts.prompts:
            settings["prompts"] = beside or 1.0
            spent += f", {beside:.0%} of them of made-up texts" if beside else ""
    if facts.tower == "image" and facts.views == 1:
        spent += "; the store has one view a photo: with embed --views 4 --augment crop_flip it learns more"
    return settings, spent
