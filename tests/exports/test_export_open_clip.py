"""`clip-distill export` writes what open_clip loads, with the same embeddings and the same scores."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from clip_distill.cli import main as cli
from clip_distill.exports.open_clip import verify, write
from clip_distill.exports.target import Given
from clip_distill.students.cut import timm_cut
from clip_distill.students.image import timm_backbone, vit
from clip_distill.students.text import transformer
from clip_distill.teachers import load_teacher
from clip_distill.towers.spec import Tower, TowerSpec, load_tower, save_tower

TOWERS: tuple[Tower, Tower] = ("image", "text")
CAPTIONS = ["a red square", "three dogs", "nothing at all on a plain white table"]
COMBINATIONS = [("image",), ("text",), ("image", "text")]


def export(out: Path, *options: object) -> None:
    cli.main(["export", "--out", str(out), *map(str, options)])


def student_options(runs: dict[str, Path], towers: tuple[str, ...]) -> list[str]:
    return [word for tower in towers for word in (f"--{tower}_student", str(runs[tower]))]


def sources(runs: dict[str, Path], towers: tuple[str, ...], teacher: str) -> dict[str, tuple[TowerSpec, nn.Module]]:
    return {tower: load_tower(runs[tower]) if tower in towers else load_teacher(teacher, tower) for tower in TOWERS}


@pytest.mark.parametrize("towers", COMBINATIONS)
def test_open_clip_loads_the_same_towers(
    towers: tuple[str, ...],
    tiny_teacher: str,
    tiny_data: Path,
    tiny_store: Path,
    tiny_runs: dict[str, Path],
    tmp_path: Path,
) -> None:
    export(tmp_path / "exported", "--store", tiny_store, *student_options(tiny_runs, towers))
    name = f"local-dir:{tmp_path / 'exported'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    expected = sources(tiny_runs, towers, tiny_teacher)
    pixels = torch.stack([preprocess(Image.open(path)) for path in sorted((tiny_data / "image").iterdir())[:4]])
    tokens = open_clip.get_tokenizer(name)(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_image(pixels), expected["image"][1](pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), expected["text"][1](tokens), rtol=0, atol=1e-5)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(expected["image"][0].teacher["logit_scale"])
    mean = open_clip.get_model_preprocess_cfg(model)["mean"]
    assert list(mean) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("towers", COMBINATIONS)
def test_an_export_scores_as_its_runs_do(
    towers: tuple[str, ...], tiny_data: Path, tiny_store: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    export(tmp_path / "exported", "--store", tiny_store, *student_options(tiny_runs, towers))
    exported = {tower: f"local-dir:{tmp_path / 'exported'}" for tower in towers}
    reports = []
    for names in ({tower: str(tiny_runs[tower]) for tower in towers}, exported):
        options = ["--data", str(tiny_data), "--store", str(tiny_store), "--workers", "0", "--device", "cpu"]
        options += [word for tower, name in names.items() for word in (f"--{tower}_student", name)]
        cli.main(["evaluate", *options, "--out", str(tmp_path / "r.json")])
        reports.append(json.loads((tmp_path / "r.json").read_text(encoding="utf-8")))
    assert reports[0]["pairings"] == reports[1]["pairings"]
    for tower in towers:
        before, after = (report["students"][tower] for report in reports)
        assert before["parameters"] == after["parameters"]
        assert before["mean_cosine"] == pytest.approx(after["mean_cosine"], abs=1e-6)


def test_both_students_need_no_teacher(
    tiny_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {}
    for tower, folder in tiny_runs.items():  # their teacher lies nowhere any more
        spec, module = load_tower(folder)
        runs[tower] = tmp_path / tower
        save_tower(runs[tower], dataclasses.replace(spec, teacher=spec.teacher | {"name": "local-dir:gone"}), module)
    monkeypatch.chdir(tmp_path)
    export(Path("exported"), *student_options(runs, TOWERS))
    printed = capsys.readouterr().out
    code = printed[printed.index("import open_clip") :]
    names: dict[str, Any] = {}
    exec(code, names)  # the printed lines are what a user copies
    assert names["tokenizer"](["a dog"]).shape == (1, 77) and names["model"].visual.conv1.out_channels == 16
    assert sorted(path.name for path in Path("exported").iterdir()) == [
        "README.md",
        "export.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    with pytest.raises(SystemExit, match="local-dir:gone"):
        export(Path("other"), "--image_student", runs["image"])
    assert not Path("other").exists()


def test_a_teacher_without_custom_text_is_exported_with_it(
    tiny_plain_teacher: str, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    export(tmp_path / "exported", "--teacher", tiny_plain_teacher, "--image_student", tiny_runs["image"])
    weights = tmp_path / "exported/open_clip_model.safetensors"
    keys = load_file(weights).keys()
    assert weights.stat().st_mode == (tmp_path / "exported/open_clip_config.json").stat().st_mode
    assert {key.split(".")[0] for key in keys} == {"visual", "text", "logit_scale"}


def test_another_teacher_is_refused(
    make_teacher: Callable[..., str], tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", custom_text=True, seed=7)
    with pytest.raises(SystemExit, match="(?s)teacher local-dir:.*weights_sha256: expected"):
        export(tmp_path / "exported", "--teacher", other, "--text_student", tiny_runs["text"])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_an_export(
    tiny_store: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    options = ["--store", tiny_store, *student_options(tiny_runs, ("text",))]
    export(out, *options)
    (out / "open_clip_model.safetensors").write_bytes(b"old")
    with pytest.raises(SystemExit, match="--overwrite"):
        export(out, *options)
    assert (out / "open_clip_model.safetensors").read_bytes() == b"old"
    export(out, *options, "--overwrite", "true")
    assert (out / "open_clip_model.safetensors").stat().st_size > 1000
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match="no open_clip_config.json"):
        export(tmp_path / "mine", *options, "--overwrite", "true")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "mine"]
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


def test_nothing_to_export_is_an_error(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected --image_student, --text_student or both"):
        export(tmp_path / "exported", "--store", tiny_store)


def test_a_timm_student_at_another_resolution(tiny_teacher: str, tmp_path: Path) -> None:
    teacher = load_teacher(tiny_teacher, "image")[0].teacher
    save_tower(tmp_path / "run", *timm_backbone(teacher, "test_vit2", input_resolution=64))
    export(tmp_path / "exported", "--image_student", tmp_path / "run")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'exported'}")
    assert preprocess(Image.new("RGB", (48, 40))).shape == (3, 64, 64)
    assert open_clip.get_model_preprocess_cfg(model)["size"] in (64, (64, 64), [64, 64])


def test_activations_must_agree_unless_one_tower_has_its_own(make_teacher: Callable[..., str], tmp_path: Path) -> None:
    teachers = {
        quick: make_teacher(tmp_path / f"{quick}", custom_text=True, quick_gelu=quick) for quick in (False, True)
    }
    text = load_teacher(teachers[True], "text")
    info = text[0].teacher
    clash = load_teacher(teachers[False], "image")
    with pytest.raises(ValueError, match="quick_gelu: expected the same .* image False and text True"):
        write(tmp_path, Given(clash, text, info))
    spec, module = timm_backbone(info, "test_vit2", input_resolution=64)
    timm_tower = dataclasses.replace(spec, quick_gelu=False), module.eval()
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed", Given(timm_tower, text, info))
    assert json.loads((tmp_path / "mixed/open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_a_tower_that_is_not_open_clip_s_is_refused(tiny_teacher: str, tmp_path: Path) -> None:
    image, text = (load_teacher(tiny_teacher, tower) for tower in TOWERS)
    foreign = dataclasses.replace(image[0], builder="mine:build"), image[1]
    with pytest.raises(ValueError, match="image tower is built by mine:build"):
        write(tmp_path, Given(foreign, text, image[0].teacher))


def test_a_folder_that_loads_as_something_else_is_noticed(tiny_teacher: str, tmp_path: Path) -> None:
    image, text = (load_teacher(tiny_teacher, tower) for tower in TOWERS)
    write(tmp_path, Given(image, text, image[0].teacher))
    torch.manual_seed(5)
    other_text = text[0], text[0].build().eval()
    with pytest.raises(ValueError, match="the text tower gives other embeddings"):
        verify(tmp_path, image, other_text)
    with pytest.raises(ValueError, match="the image tower gives other embeddings"):
        verify(tmp_path, (image[0], image[0].build().eval()), text)
    shifted = dataclasses.replace(image[0], preprocess=image[0].preprocess | {"mean": [0.4] * 3})
    with pytest.raises(ValueError, match="preprocessing 'mean': expected"):
        verify(tmp_path, (shifted, image[1]), text)
    config = tmp_path / "open_clip_config.json"
    cased = config.read_text().replace('"text_cfg": {', '"text_cfg": {"tokenizer_kwargs": {"clean": "whitespace"},')
    config.write_text(cased)
    with pytest.raises(ValueError, match="another tokenizer"):
        verify(tmp_path, image, text)


def test_a_siglip_teacher_s_bias_is_written(tiny_teacher: str, tmp_path: Path) -> None:
    image, text = (load_teacher(tiny_teacher, tower) for tower in TOWERS)
    write(tmp_path, Given(image, text, image[0].teacher | {"logit_bias": -12.5}))
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert float(model.logit_bias.detach()) == -12.5


def test_a_hugging_face_tokenizer_goes_with_the_folder(tiny_teacher: str, tmp_path: Path) -> None:
    """A text student of a teacher with a word-level tokenizer: the exported folder needs no other file."""
    teacher = hugging_face_teacher(tiny_teacher, tmp_path / "teacher")
    info = load_teacher(teacher, "text")[0].teacher
    spec, module = transformer(info, transformer_width=16, transformer_layers=1, transformer_heads=2)
    save_tower(tmp_path / "run", spec, module)
    image = vit(info, input_resolution=32, patch_size=16, width=16, layers=1, heads=2)
    save_tower(tmp_path / "run-image", *image)
    export(tmp_path / "exported", "--image_student", tmp_path / "run-image", "--text_student", tmp_path / "run")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'exported'}")(["a red square"])
    assert torch.equal(tokens, open_clip.get_tokenizer(teacher)(["a red square"]))
    assert tokens[0, :3].tolist() == [3, 4, 5]


def hugging_face_teacher(plain: str, folder: Path) -> str:
    """`tiny_teacher` with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    source = Path(plain.removeprefix("local-dir:"))
    folder.mkdir()
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "words", "pool_type": "eos", "eos_id": 2}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").write_bytes((source / "open_clip_model.safetensors").read_bytes())
    words = ["<pad>", "<unk>", "<eos>", "a", "red", "square", "dog"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    fast.save_pretrained(folder)
    return f"local-dir:{folder}"


LOADED = """
import sys, torch
if {first}: import open_clip
import clip_distill
import open_clip
model = open_clip.create_model("local-dir:{folder}").eval()
print(model.encode_image(torch.full((1, 3, 32, 32), 0.5)).sum().item())
"""


@pytest.mark.parametrize("first", [True, False])
def test_a_cut_backbone_is_an_architecture_that_importing_the_package_adds(
    first: bool, tiny_runs: dict[str, Path], make_teacher: Callable[..., str], tmp_path: Path
) -> None:
    record = load_teacher(make_teacher(tmp_path / "teacher", custom_text=True), "image")[0].teacher
    spec, module = timm_cut(record, "test_efficientnet", depths=[1, 1], hidden=16, input_resolution=32)
    other = load_teacher(f"local-dir:{tmp_path / 'teacher'}", "text")
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", Given((spec, module.eval()), other, record))
    with torch.inference_mode():
        expected = float(module(torch.full((1, 3, 32, 32), 0.5)).sum())
    code = LOADED.format(first=first, folder=tmp_path / "out")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(expected, abs=1e-4)


def test_a_name_that_is_no_cut_backbone() -> None:
    with pytest.raises(ValueError, match="expected clip_distill_cut.MODEL-DEPTHS-HIDDEN-HEAD .* found the tag 'x'"):
        timm.create_model("clip_distill_cut.x")
