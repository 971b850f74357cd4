"""`fit --from`: a student goes on, on data that has grown, and is compared with what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import clip_distill as cd
from clip_distill.cli.main import main as cli
from clip_distill.towers.spec import Tower, load_tower
from clip_distill.train.go_on import _verdict

SIZES: dict[Tower, str] = {
    "image": "{input_resolution: 32, patch_size: 16, width: 16, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_student_goes_on_when_data_has_grown(
    tower: Tower, tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, texts, store = tmp_path / "photos", tmp_path / "texts.txt", str(tmp_path / "store")
    all_photos = sorted((tiny_data / "image").iterdir())
    photos.mkdir()

    def grow(share: float) -> None:
        for photo in all_photos[: round(share * len(all_photos))]:
            (photos / photo.name).write_bytes(photo.read_bytes())
        lines = [f"sentence {i} of many\n" for i in range(round(share * 80))]
        texts.write_text("".join(lines), encoding="utf-8")
        sources = {"train_images": str(photos)} if tower == "image" else {"train_captions": str(texts)}
        cd.embed(teacher=tiny_teacher, store=store, workers=0, device="cpu", sources=cd.Sources(**sources))

    grow(0.5)
    source = f"--sources.train_images={photos}" if tower == "image" else f"--sources.train_captions={texts}"
    first = ["--tower", tower, source, "--store", store, "--out", str(tmp_path / "a"), "--preset", "none"]
    first += ["--student.options", SIZES[tower], "--holdout", "0.5", "--trainer.max_epochs", "4"]
    cli(["fit", *first, "--optimizer.lr", "3e-3", "--trainer.accelerator", "cpu", "--loader.workers", "0"])
    held = json.loads((tmp_path / "a/held_out.json").read_text(encoding="utf-8"))["ids"]
    grow(1.0)
    capsys.readouterr()
    cli(["fit", "--from", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--trainer.accelerator", "cpu"])
    printed = capsys.readouterr().out
    made = yaml.safe_load((tmp_path / "b/recipe.yaml").read_text(encoding="utf-8"))
    assert (made["tower"], made["start_from"], made["trainer"]["max_epochs"]) == (tower, str(tmp_path / "a"), 2)
    assert made["optimizer"]["lr"] == pytest.approx(1e-3)
    now = json.loads((tmp_path / "b/held_out.json").read_text(encoding="utf-8"))["ids"]
    assert set(held) < set(now), "rows stay on their side"
    assert f"rows held out before ({len(held)}): agreement" in printed
    assert f"rows held out since ({len(now) - len(held)}): agreement" in printed
    assert any(word in printed for word in ("better than before", "as good as before", "worse"))


def test_what_it_was_before_is_what_the_first_run_left(
    tiny_data: Path, tiny_views_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tower": "text", "data": tiny_data, "store": tiny_views_store}
    options = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
    trainer = {"max_epochs": 2, "accelerator": "cpu"}
    first = cd.fit(out=tmp_path / "a", student={"options": options}, preset="none", trainer=trainer, **places)
    capsys.readouterr()
    second = cd.fit(start_from=first, out=tmp_path / "b", trainer={"accelerator": "cpu"}, **{"optimizer.lr": 0.0})
    printed = capsys.readouterr().out
    assert second.mean_recall == pytest.approx(first.mean_recall)
    assert "mean recall" in printed and "as good as before" in printed, "a learning rate of 0 changes nothing"
    one, other = (load_tower(folder)[1].state_dict() for folder in (tmp_path / "a", tmp_path / "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(cd.Error, match="expected the run of a student for images"):
        cd.fit(start_from=first, out=tmp_path / "c", **places | {"tower": "image"})


def test_the_verdict_names_what_to_do() -> None:
    start = Path("runs/a")
    assert _verdict(start, [1.0, 0.0]) == "better than before"
    assert _verdict(start, [0.0]) == "as good as before"
    assert _verdict(start, [1.0, -0.1]).startswith("worse on some of them: keep runs/a")
    assert _verdict(start, [-1.0]).startswith("worse now: keep runs/a")
    assert _verdict(start, []) == "nothing to compare"
