"""`clip-distill plan` on small real files, against what embed and fit then really leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clip_distill.cli import main as cli
from clip_distill.store.table import Store

TINY = {
    "image": "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}
EMBED = ["--views", "3", "--augment", "crop_flip", "--workers", "0", "--device", "cpu", "--shard_rows", "16"]


def plan(tower: str, data: Path, teacher: str, out: Path, *options: str) -> dict[str, Any]:
    base = ["--data", str(data), "--teacher", teacher, "--tower", tower, *EMBED, "--seconds", "0.1"]
    base += ["--student.options", TINY[tower], "--loader.workers", "0", "--loader.batch_size", "8"]
    cli.main(["plan", *base, "--trainer.max_epochs", "4", "--out", str(out), *options])
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def store(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned-store")
    cli.main(["embed", "--data", str(tiny_data), "--teacher", tiny_teacher, "--store", str(folder), *EMBED])
    return folder


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_plan_states_what_embed_and_fit_then_take(
    tower: str, tiny_data: Path, tiny_teacher: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = plan(tower, tiny_data, tiny_teacher, tmp_path / "plan.json")
    printed = capsys.readouterr().out
    assert "Measured" in printed
    assert "Extrapolated: embed" in printed
    assert f"fit, {tower} student, steps" in printed

    items = {f"{tower}-train": {"image": 24, "text": 72}[tower], "image-val": 8, "text-val": 24}
    assert report["embed"]["counted"]["items"] == items
    embed = report["embed"]["extrapolated"]
    for name, table in embed["tables"].items():
        real = Store(store / name)
        assert (table["rows"], table["views"], table["dim"]) == (len(real), real.manifest.views, 32)
        assert table["bytes"] == pytest.approx(bytes_below(store / name), rel=0.1)
        views = sum(path.stat().st_size for path in (store / name).rglob("view-*.npy"))
        assert table["bytes_by_part"]["embeddings"] == views
        assert table["seconds"] > 0
    assert embed["bytes"] == sum(table["bytes"] for table in embed["tables"].values())
    assert embed["seconds"] > sum(table["seconds"] for table in embed["tables"].values())

    fit = report["fit"][tower]
    rows = items[f"{tower}-train"]
    assert (fit["extrapolated"]["rows"], fit["extrapolated"]["steps_per_epoch"]) == (rows, rows // 8)
    assert fit["counted"]["val_rows"] == items[f"{tower}-val"]
    seconds = fit["measured"]["step"]["seconds"] / fit["measured"]["step"]["items"]
    validation = fit["extrapolated"]["validation_seconds"]
    total = fit["measured"]["startup_seconds"] + 4 * (rows // 8 * seconds + validation)
    assert fit["extrapolated"]["seconds"] == pytest.approx(total)
    for measured in (report["embed"]["measured"], fit["measured"]):
        assert 100 * 2**20 < measured["peak_bytes"] < 10 * 2**30  # an interpreter with torch, at least
    assert 1 <= fit["extrapolated"]["largest_batch"] <= rows


def test_the_planned_run_leaves_the_files_that_were_planned(
    tiny_data: Path, tiny_teacher: str, store: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    lines = ["tower: text", f"data: {tiny_data}", f"store: {store}", f"out: {tmp_path / 'run'}", "loader: {workers: 0}"]
    lines += [f"student: {{options: {TINY['text']}}}", "trainer: {max_epochs: 1, accelerator: cpu}"]
    recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--teacher", tiny_teacher, "--seconds", "0.1", "--workers", "0", "--device", "cpu"]
    cli.main(["plan", "--recipe", str(recipe), *flags, "--out", str(tmp_path / "plan.json")])
    planned = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["fit"]["text"]
    assert not (tmp_path / "run").exists()

    cli.main(["fit", "--recipe", str(recipe), "--trainer.enable_progress_bar", "false"])
    weights = [*(tmp_path / "run").rglob("*.ckpt"), *(tmp_path / "run").rglob("*.safetensors")]
    real = sum(path.stat().st_size for path in weights)
    assert planned["extrapolated"]["bytes"] == pytest.approx(real, rel=0.1)


def test_photos_that_cannot_be_read_are_counted_and_left_out(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "image").mkdir(parents=True)
    for photo in (tiny_data / "image").iterdir():
        (data / "image" / photo.name).write_bytes(photo.read_bytes())
    for number in range(8):
        (data / "image" / f"broken{number}.jpg").write_bytes(b"not a photo")
    (data / "COCO").symlink_to(tiny_data / "COCO")
    report = plan("image", data, tiny_teacher, tmp_path / "plan.json")
    assert report["embed"]["counted"]["items"]["image-train"] == 32
    assert report["embed"]["measured"]["readable"] == 0.75
    assert report["embed"]["measured"]["skipped"] == {"not an image": 8}
    assert report["embed"]["extrapolated"]["tables"]["image-train"]["rows"] == 24
    assert report["fit"]["image"]["extrapolated"]["rows"] == 24


def test_each_tower_may_have_a_recipe_and_banks_need_the_other_towers_table(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    for tower, loss in (("image", "[cosine, bank_kl]"), ("text", "[mse]")):
        lines = [f"tower: {tower}", f"student: {{options: {TINY[tower]}}}", f"loss: {{names: {loss}, bank: 50}}"]
        lines += [f"loader: {{batch_size: {4 if tower == 'image' else 8}, workers: 0}}", "seed: 3"]
        (tmp_path / f"{tower}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    base = ["plan", "--data", str(tiny_data), "--teacher", tiny_teacher, "--workers", "0", "--device", "cpu"]
    base += ["--seconds", "0.1", "--out", str(tmp_path / "plan.json")]
    recipes = ["--image_recipe", str(tmp_path / "image.yaml"), "--text_recipe", str(tmp_path / "text.yaml")]
    cli.main([*base, *recipes])
    fit = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["fit"]
    assert [fit[tower]["extrapolated"]["steps_per_epoch"] for tower in ("image", "text")] == [24 // 4, 72 // 8]
    assert fit["image"]["options"]["recipe"]["loss"]["names"] == ["cosine", "bank_kl"]
    assert fit["text"]["options"]["recipe"]["student"]["options"]["transformer_width"] == 16

    cli.main([*base, "--recipe", str(tmp_path / "image.yaml")])
    embed = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["embed"]
    assert embed["counted"]["items"].keys() == {"image-train", "image-val", "text-train", "text-val"}
    with pytest.raises(SystemExit, match="--text_recipe .*expected tower: text, found image"):
        cli.main([*base, "--text_recipe", str(tmp_path / "image.yaml")])
    with pytest.raises(SystemExit, match="expected --tower both, found text"):
        cli.main([*base, "--tower", "text", *recipes])
    (tmp_path / "text.yaml").write_text("sources: {recursive: true}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="recipes to name the same data"):
        cli.main([*base, *recipes])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "2"], "an augmentation where views > 1"),
        (["--student.options.width", "64"], "say which with --tower image"),
        (["--target", "online", "--tower", "image"], "expected target: stored"),
        (["--loader.packed", "here", "--tower", "image"], "expected neither loader.packed nor loader.features"),
        (["--seconds", "0"], "seconds above 0"),
        (["--data", "nowhere"], "expected a folder, found nothing there"),
    ],
)
def test_mistakes_are_told_with_what_was_expected(
    options: list[str], message: str, tiny_data: Path, tiny_teacher: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(["plan", "--data", str(tiny_data), "--teacher", tiny_teacher, *options])
