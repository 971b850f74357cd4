"""`fit --target photo`: captions in any language find their photos' stored embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clip_distill as cd
from clip_distill.cli.main import main as cli
from clip_distill.towers.spec import load_tower

WORDS = {"red": "红", "green": "绿", "blue": "蓝", "circle": "圆", "square": "方"}
SIZE = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2, "vocab_size": 300}


def in_chinese(path: Path, to: Path) -> Path:
    """The captions of a COCO file, each word as a character of its own."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for number, annotation in enumerate(content["annotations"]):
        annotation["caption"] = "".join(
            WORDS.get(word, chr(0x4E00 + len(word))) for word in annotation["caption"].split()
        )
        annotation["caption"] += f"{number % 7}"
    to.write_text(json.dumps(content), encoding="utf-8")
    return to


@pytest.fixture
def places(tiny_data: Path, tiny_views_store: Path, tmp_path: Path) -> dict[str, Any]:
    annotations = tiny_data / "COCO/annotations"
    files = {
        part: in_chinese(annotations / f"captions_{part}2017.json", tmp_path / f"{part}.json")
        for part in ("train", "val")
    }
    sources = {f"{part}_captions": str(file) for part, file in files.items()}
    return {"tower": "text", "data": tiny_data, "store": tiny_views_store, "sources": sources}


def test_a_student_of_another_language_learns_from_photos_alone(
    places: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = {"options": SIZE, "tokenizer": "train"}
    trainer = {"max_epochs": 12, "accelerator": "cpu"}
    keys: dict[str, Any] = {"target": "photo", "student": student, "trainer": trainer, "loss": {"names": ["infonce"]}}
    keys |= {"optimizer.lr": 1e-2, "loader.batch_size": 16}
    run = cd.fit(out=tmp_path / "run", **places, **keys)
    assert "48 captions are to find their photos" in capsys.readouterr().out
    assert (run.mean_recall or 0) > 100 * 3 / 8, "chance of 1 among 8 photos, and more at R@5 and R@10"
    spec, _ = load_tower(run)
    assert spec.tokenizer["source"] == "trained" or spec.tokenizer["vocab_size"] <= 300
    # a student of translations goes on with native captions in the same way
    again = cd.fit(start_from=run, out=tmp_path / "again", target="photo", loss={"names": ["infonce"]}, **places)
    assert "before" in capsys.readouterr().out and again.mean_recall is not None


def test_what_does_not_fit_is_told(places: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(cd.Error, match="target photo: expected --tower text"):
        cd.fit(out=tmp_path, **places | {"tower": "image"}, target="photo")
    with pytest.raises(cd.Error, match="translations: expected --target stored"):
        cd.fit(out=tmp_path, **places, target="photo", translations="t.tsv")
    lines = tiny_data / "CC/Train_GCC-training.tsv"
    alone = places | {"sources": {**places["sources"], "train_captions": str(lines)}}
    with pytest.raises(cd.Error, match="expected photos with captions, found none of 24"):
        cd.fit(out=tmp_path, **alone, target="photo", student={"options": {**SIZE, "vocab_size": 49408}})
    base = ["--tower", "text", "--store", str(places["store"]), "--out", str(tmp_path), "--target", "photo"]
    captions = [
        "--sources.train_images",
        f"{tiny_data}/image",
        "--sources.train_captions",
        places["sources"]["train_captions"],
    ]
    with pytest.raises(SystemExit, match="expected validation photos with captions"):
        cli(["fit", *base, *captions])
