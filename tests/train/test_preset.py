"""Presets give the shipped recipes for the teacher that these were tuned on, and a student that builds for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clip_distill as cd
from clip_distill.cli.main import main as cli
from clip_distill.recipes import read_recipe
from clip_distill.students import make_student
from clip_distill.teachers.open_clip import read_config
from clip_distill.towers.spec import Tower, count_parameters
from clip_distill.train.preset import PRESETS, Facts, Preset, settings_of, shortened, without

FLICKR8K = {"image": 6000, "text": 30_000}


def record(name: str) -> dict[str, Any]:
    """Of one of open_clip's architectures, as a store has it."""
    cfg = read_config(name, None)
    text = cfg["text_cfg"]
    tokenizer = {"source": text.get("hf_tokenizer_name", "clip"), "vocab_size": text.get("vocab_size", 49408)}
    return {
        "name": name,
        "embed_dim": cfg["embed_dim"],
        "logit_scale": 100.0,
        "model_cfg": cfg,
        "tokenizer": tokenizer | {"context_length": text.get("context_length", 77)},
        "preprocess": {"size": cfg["vision_cfg"].get("image_size", 224), "mean": [0.5] * 3, "std": [0.5] * 3},
    }


def small_teacher() -> dict[str, Any]:
    """As Flickr8k's: EfficientNet-Lite0 and a text transformer of 4 layers, width 256."""
    made = record("ViT-B-32")
    vision = {"timm_model_name": "tf_efficientnet_lite0", "image_size": 224}
    text = {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4}
    cfg = made["model_cfg"] | {"embed_dim": 256, "vision_cfg": vision, "text_cfg": text}
    return made | {"embed_dim": 256, "logit_scale": 1 / 0.0566, "model_cfg": cfg}


def facts(tower: Tower, teacher: dict[str, Any], rows: int | None = None, **others: Any) -> Facts:
    known = {"views": 4, "paired": True, "foreign": False, "out": "runs/x"} | others
    return Facts(tower, teacher, rows or FLICKR8K[tower], **known)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_recipes_figures_hold_for_the_presets(tower: Tower, preset: Preset) -> None:
    settings, lines = settings_of(preset, facts(tower, small_teacher()))
    recipe = read_recipe(f"flickr8k_{tower}_{preset}")
    options, chosen = (each["student"].pop("options") for each in (recipe, settings))
    options.pop("input_resolution", None)  # the teacher's own
    assert options.items() <= chosen.items()
    if tower == "text":  # a preset keeps the teacher's tokens, of which no shipped recipe has all
        assert chosen["embedding_rank"] == {"smallest": 16, "balanced": 40, "best": 64}[preset]
        recipe["student"] = {key: recipe["student"][key] for key in settings["student"]}
    assert settings["student"] == recipe["student"]
    assert settings["loss"]["options"] == {
        name: pytest.approx(given, abs=1e-3) for name, given in recipe["loss"]["options"].items()
    }
    for key in ("names", "weights"):
        assert settings["loss"][key] == recipe["loss"][key]
    assert settings["loss"]["bank"] == recipe["loss"].get("bank", 4096)
    assert settings["optimizer"].items() <= recipe["optimizer"].items()
    assert settings.get("ema", 0) == recipe.get("ema", 0)
    assert settings["loader"]["batch_size"] == recipe["loader"]["batch_size"]
    assert settings["trainer"]["max_epochs"] == recipe["trainer"]["max_epochs"]
    assert len(lines) == 5


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "RN50", "ViT-B-16-SigLIP", "MobileCLIP-S1", "MobileCLIP2-S0"])
def test_every_kind_of_teacher_has_students_that_grow_with_the_preset(name: str) -> None:
    teacher = record(name)
    sizes: dict[Tower, list[int]] = {"image": [], "text": []}
    for tower, preset in ((tower, preset) for tower in sizes for preset in PRESETS):
        student = settings_of(preset, facts(tower, teacher))[0]["student"]
        options = dict(student["options"])
        _, module = make_student(tower, student["name"], teacher, options)
        sizes[tower].append(count_parameters(module))
    for each in sizes.values():
        assert each[0] <= each[1] <= each[2] and each[0] < each[2]


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ([1, 2, 2, 3, 3, 4, 1], [[1, 2, 2, 3, 2, 1], [1, 2, 2, 3, 3, 2], [1, 2, 2, 3, 3, 3]]),
        ([2, 6, 10, 2], [[2, 6, 5], [2, 6, 5, 1], [2, 6, 8, 2]]),
        ([3, 4, 6, 3], [[3, 4, 3], [3, 4, 3, 1], [3, 4, 5, 2]]),
    ],
)
def test_last_stages_are_shortened(whole: list[int], expected: list[list[int]]) -> None:
    assert [shortened(whole, preset) for preset in PRESETS] == expected


def test_teachers_of_another_make_start_from_random_weights() -> None:
    teacher = record("ViT-B-32") | {"ensemble": ["a", "b"]}
    for tower in FLICKR8K:
        student = settings_of("balanced", facts(tower, teacher))[0]["student"]  # type: ignore[arg-type]
        assert "init" not in student and not student.get("freeze")
    plain = {"vision_cfg": {"image_size": 224}, "text_cfg": {"context_length": 52, "vocab_size": 21128}}
    teacher |= {"model_cfg": teacher["model_cfg"] | plain}
    student = settings_of("balanced", facts("image", teacher))[0]["student"]
    assert student["options"]["model"] == "mobilenetv2_100"
    assert "init" not in settings_of("balanced", facts("text", teacher))[0]["student"]


def test_losses_schedule_and_tokens_follow_the_data() -> None:
    alone, lines = settings_of("balanced", facts("image", small_teacher(), rows=1000, views=1, paired=False))
    assert alone["loss"]["names"] == ["cosine", "queue_kl"] and alone["loss"]["weights"] == [2.0, 0.6]
    assert alone["trainer"]["max_epochs"] == 8
    few = settings_of("balanced", facts("image", small_teacher(), rows=100))[0]
    assert few["trainer"]["max_epochs"] == 60  # of 2 steps
    assert "without affinity" in lines[2] and "--views 4" in lines[3]
    text = settings_of("balanced", facts("text", small_teacher(), paired=False))[0]
    assert text["loss"]["names"] == ["cosine", "gram_kl"] and "bank_kl" not in text["loss"]["options"]
    many = settings_of("balanced", facts("text", small_teacher(), rows=3_000_000))[0]
    assert many["trainer"]["max_epochs"] == 3 and many["loader"]["batch_size"] == 1024
    foreign = settings_of("balanced", facts("text", small_teacher(), foreign=True))[0]["student"]
    assert foreign["tokenizer"] == "train" and "vocabulary" not in foreign
    assert foreign["options"]["transformer_width"] == 192


def test_made_up_texts_are_two_thirds_of_an_epoch_or_all_of_it() -> None:
    both, lines = settings_of("balanced", facts("text", small_teacher(), prompts=300_000))
    assert both["prompts"] == 0.67 and both["trainer"]["max_epochs"] == 8
    assert "30,000 captions with 300,000 made-up texts" in lines[0]
    assert "2,848 steps" in lines[3] and "67% of them of made-up texts" in lines[3]  # 30,000 + 60,909 a time
    smallest = settings_of("smallest", facts("text", small_teacher(), prompts=300_000))[0]
    assert smallest["prompts"] == 0.5 and smallest["trainer"]["max_epochs"] == 12
    alone, lines = settings_of("balanced", Facts("text", small_teacher(), 0, 1, False, False, "runs/x", 300_000))
    assert alone["prompts"] == 1.0 and alone["trainer"]["max_epochs"] == 3
    assert lines[0].endswith("and 300,000 made-up texts:")
    assert "prompts" not in settings_of("balanced", facts("text", small_teacher()))[0]


def test_what_is_given_takes_the_ground_from_what_would_not_fit_it() -> None:
    settings, _ = settings_of("balanced", facts("image", small_teacher()))
    other = without(settings, {"student": {"name": "vit"}})
    assert other["student"] == {} and "features" not in other["loader"]
    fresh = without(settings, {"student": {"init": "random"}})
    assert "freeze" not in fresh["student"] and "features" not in fresh["loader"]
    chosen = without(settings, {"loss": {"names": ["queue_kl", "l1"]}})["loss"]
    assert chosen == {"options": {"queue_kl": {"size": 0, "temperature": 0.03}}, "bank": 4096}
    online = without(settings, {"target": "online"})
    assert "probe" not in online["student"] and "features" not in online["loader"]
    assert without(settings, {"student": {"options": {"hidden": 64}}}) == settings


@pytest.mark.parametrize("tower", ["image", "text"])
def test_fit_without_a_recipe_goes_by_the_balanced_preset(
    tower: Tower, tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    base = ["--data", str(tiny_data), "--store", str(tiny_views_store), "--out", str(out), "--loader.workers", "0"]
    layers = {"image": "--student.options.layers", "text": "--student.options.transformer_layers"}[tower]
    cli(["fit", "--tower", tower, *base, layers, "1", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"])
    assert "preset balanced, from the teacher" in capsys.readouterr().out
    made = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    assert "preset" not in made and made["trainer"]["max_epochs"] == 1
    expected = {
        "image": {"input_resolution": 32, "patch_size": 32, "width": 32, "layers": 1, "heads": 2},
        "text": {"context_length": 77, "transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
        | {"vocab_size": 49408, "embedding_rank": 16},
    }[tower]
    assert made["student"]["options"] == expected
    assert made["student"]["select"] == "principal"
    assert (
        made["loss"]["names"]
        == {
            "image": ["cosine", "affinity", "queue_kl"],
            "text": ["cosine", "gram_kl", "bank_kl"],
        }[tower]
    )
    # a run goes on by its own recipe, whatever the store has become
    cli(["fit", "--tower", tower, *base, "--resume", "--trainer.max_epochs", "2"])
    assert "preset" not in capsys.readouterr().out
    assert yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))["student"] == made["student"]


def test_the_api_fills_nested_options_and_takes_none(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: dict[str, Any] = {"data": tiny_data, "store": tiny_views_store, "tower": "text"}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    student = {"options": {"transformer_layers": 1}}
    cd.fit(out=tmp_path / "a", student=student, preset="smallest", trainer=trainer, **keys)
    made = yaml.safe_load((tmp_path / "a/recipe.yaml").read_text(encoding="utf-8"))
    assert (made["student"]["options"]["transformer_width"], made["student"]["options"]["transformer_layers"]) == (8, 1)
    student = {"options": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}}
    cd.fit(out=tmp_path / "b", student=student, preset="none", trainer=trainer, **keys)
    made = yaml.safe_load((tmp_path / "b/recipe.yaml").read_text(encoding="utf-8"))
    assert made["student"]["init"] == "random" and made["loss"]["names"] == ["cosine"]


def test_a_store_without_captions_is_told_what_would_help(tiny_data: Path, tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(cd.Error, match=r"\(text-train\), found none.*train_captions, or --prompts vocabulary"):
        cd.fit(tower="text", data=tiny_data, store=tiny_store, out=tmp_path)


def test_an_unknown_preset_is_told(make_record: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="--preset: expected smallest, balanced, best or none, found 'tiny'"):
        settings_of("tiny", facts("text", make_record()))  # type: ignore[arg-type]
