"""`clip-distill fit --translations`: a student of another language, from `fit` to an exported folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from clip_distill.cli import main as cli
from clip_distill.corpus.layout import Sources, scan
from clip_distill.evaluation.retrieval import encode_texts
from clip_distill.recipe import Recipe, Student
from clip_distill.store.ensemble import open_table
from clip_distill.tokens.encode import load_tokenizer
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.tokens.trained import load, train
from clip_distill.towers.spec import load_tower
from clip_distill.train.assemble import assemble

WORDS = {"a picture of": "一张", "there is": "有", "a ": "", " on ": "，背景是", " seen from afar": "，从远处看"}
WORDS |= {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "orange": "橙色"}
WORDS |= {"white": "白色", "black": "黑色", "circle": "圆形", "square": "方形", "bar": "横条", "frame": "方框", " ": ""}
TINY = "{transformer_width: 32, transformer_layers: 1, transformer_heads: 2, vocab_size: 400}"


def translate(caption: str) -> str:
    for english, chinese in WORDS.items():
        caption = caption.replace(english, chinese)
    return caption + "。"


class World(NamedTuple):
    """The files of a Chinese run."""

    data: Path
    store: Path
    parallel: Path
    val: Path

    def fit(self, out: Path, *options: str) -> None:
        base = ["--tower", "text", "--data", str(self.data), "--store", str(self.store), "--out", str(out)]
        base += ["--translations", str(self.parallel), "--student.tokenizer", "train", "--student.options", TINY]
        base += ["--sources.val_captions", str(self.val), "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
        base += ["--trainer.enable_progress_bar", "false", "--loader.batch_size", "16"]
        cli.main(["fit", "--preset", "none", *base, *options])


@pytest.fixture(scope="module")
def world(tiny_data: Path, tiny_views_store: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("chinese")
    captions = scan(str(tiny_data)).train.require_captions()["text"].unique().to_pylist()
    lines = [f"{caption}\t{translate(caption)}\n" for caption in captions]
    (folder / "parallel.tsv").write_text("".join([*lines, "never embedded\t没有\n"]), encoding="utf-8")
    coco = json.loads((tiny_data / "COCO/annotations/captions_val2017.json").read_text(encoding="utf-8"))
    for annotation in coco["annotations"]:
        annotation["caption"] = translate(annotation["caption"])
    (folder / "zh.json").write_text(json.dumps(coco, ensure_ascii=False), encoding="utf-8")
    return World(tiny_data, tiny_views_store, folder / "parallel.tsv", folder / "zh.json")


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    world.fit(out)
    return out


@pytest.mark.parametrize("originals", [False, True])
def test_a_translations_target_is_its_originals_embedding(originals: bool, world: World, tmp_path: Path) -> None:
    student = Student(tokenizer="train", options={"transformer_width": 16, "transformer_layers": 1, "vocab_size": 400})
    sources = Sources(val_captions=str(world.val))
    paths = str(world.data), str(world.store), str(tmp_path)
    recipe = Recipe(
        "text", *paths, student, sources=sources, translations=str(world.parallel), translations_originals=originals
    )
    module, data = assemble(recipe)
    tokenizer: Any = load_tokenizer(TokenizerSpec(**module.spec.tokenizer))
    store = open_table(world.store, "text", "train")
    captions = store.ids.to_pylist()
    expected = [*map(translate, captions), *(captions if originals else [])]
    assert len(data.train) == len(expected)
    for row, text in enumerate(expected):
        batch = data.train[np.array([(row, 0)])]
        assert tokenizer.backend.decode(batch.inputs[0].tolist()) == text.replace("，", ",")
        assert batch.target is not None
        assert np.array_equal(batch.target.numpy(), store.embeddings(np.array([row % len(captions)])))


def test_it_is_measured_on_captions_that_the_teacher_never_saw(
    run: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(world.data), "--store", str(world.store), "--sources.val_captions", str(world.val)]
    cli.main(["evaluate", *options, "--text_student", str(run), "--out", str(tmp_path / "result.json")])
    printed = capsys.readouterr().out
    assert "the store has none of these captions, so the teacher's text tower is left out" in printed
    report = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [(pair["image"], pair["text"]) for pair in report["pairings"]] == [("teacher", "student")]
    assert report["students"]["text"]["mean_cosine"] is None and set(report["pairings"][0]["kept"].values()) == {None}
    metrics = (run / "logs/metrics.csv").read_text(encoding="utf-8")
    assert "val/t2i_r10" in metrics and "val/cosine" not in metrics
    with pytest.raises(SystemExit, match="expected all captions of the val split, found 24 of 24 missing"):
        cli.main(["evaluate", *options])  # without a student, nobody could read them


def test_it_needs_no_captions_of_the_teacher_to_be_validated(run: Path, world: World, tmp_path: Path) -> None:
    shutil.copytree(world.store, tmp_path / "store", ignore=shutil.ignore_patterns("text-val"))
    world._replace(store=tmp_path / "store").fit(tmp_path / "run")
    one, other = (load_file(each / "student/tower.safetensors") for each in (run, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_exported_folder_gives_the_same_embeddings_in_open_clip(run: Path, world: World, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    cli.main(["export", "--store", str(world.store), "--text_student", str(run), "--out", str(out)])
    assert (out / "tokenizer.json").is_file()
    assert "tokenizer_json" not in (out / "open_clip_config.json").read_text(encoding="utf-8")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    texts = ["一张红色圆形，背景是黄色。", "龘靐", "a red circle", ""]
    spec, student = load_tower(run)
    with torch.no_grad():
        found = model.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{out}")(texts))
    torch.testing.assert_close(found, encode_texts(spec, student, texts, torch.device("cpu")), atol=1e-5, rtol=1e-4)


def test_originals_are_trained_on_where_asked_and_missing_ones_said(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fit(tmp_path, "--translations_originals", "true")
    printed = capsys.readouterr().out
    assert "skipped 2: original that the store lacks (first: 'never embedded')" in printed  # and its translation


def test_a_resumed_run_keeps_its_tokenizer(world: World, tmp_path: Path) -> None:
    world.fit(tmp_path)
    before, _ = load_tower(tmp_path)
    other = world._replace(parallel=tmp_path / "more.tsv")
    more = world.parallel.read_text(encoding="utf-8").replace("圆形", "圆圈")
    other.parallel.write_text(more, encoding="utf-8")
    other.fit(tmp_path, "--trainer.max_epochs", "2", "--resume", "true")
    after, _ = load_tower(tmp_path)
    assert after.tokenizer == before.tokenizer


def test_a_tokenizer_file_is_taken_and_its_place_forgotten(run: Path, world: World, tmp_path: Path) -> None:
    spec, _ = load_tower(run)
    tokenizer: Any = load_tokenizer(TokenizerSpec(**spec.tokenizer))
    tokenizer.tokenizer.save_pretrained(tmp_path / "tokenizer")
    world.fit(tmp_path / "run", "--student.tokenizer", str(tmp_path / "tokenizer"))
    again, _ = load_tower(tmp_path / "run")
    assert again.tokenizer == spec.tokenizer


def test_a_student_whose_tokens_are_others_starts_from_the_teacher_all_the_same(world: World, tmp_path: Path) -> None:
    start = ["--student.init", "teacher", "--student.select", "principal", "--optimizer.lr", "0"]
    tables = []
    for seed in ("1", "2"):
        world.fit(tmp_path / seed, *start, "--seed", seed)
        tables.append(load_tower(tmp_path / seed)[1].get_parameter("token_embedding.weight"))
    assert torch.equal(*tables)  # nothing of it was drawn at random
    assert tables[0].norm(dim=1).count_nonzero() > 0.5 * len(tables[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "online"], "translations: expected --target stored"),
        (["--student.vocabulary", "corpus"], "expected no --student.tokenizer beside it"),
        (["--tower", "image"], "expected --tower text, found image"),
        (["--student.options", "{vocab_size: 100}"], "expected more than 259 tokens"),
        (["--translations", "nowhere.tsv"], "nowhere.tsv: expected a file or a folder"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], message: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        world.fit(tmp_path, *options)


SHARED = Path(__file__).parents[2] / "../shared/flickr8k/zh"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/flickr8k is absent")
def test_native_captions_of_flickr8k_have_no_unknown_tokens() -> None:
    lines = (SHARED / "parallel_train.tsv").read_text(encoding="utf-8").splitlines()[:3000]
    tokenizer = load(train([line.split("\t")[1] for line in lines], 2000))
    coco = json.loads((SHARED / "captions_val2017.json").read_text(encoding="utf-8"))
    captions = [each["caption"] for each in coco["annotations"][:500]]
    decoded = tokenizer.backend.decode_batch(tokenizer(captions).tolist())
    assert decoded == [tokenizer.backend.normalizer.normalize_str(each) for each in captions]
    assert np.mean([len(each) for each in captions]) > 5
