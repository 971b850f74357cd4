"""`clip-distill plan` on small real files, against what embed and fit then really leave."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_distill.cli import main as cli
from clip_distill.store.table import Store

pytestmark = pytest.mark.usefixtures("warm_processes")

TINY = {
    "image": "{input_resolution: 32, patch_size: 16, width: 32, layers: 1, heads: 2}",
    "text": "{transformer_width: 16, transformer_layers: 1, transformer_heads: 2}",
}
EMBED = ["--views", "3", "--augment", "crop_flip", "--workers", "0", "--device", "cpu", "--shard_rows", "16"]


@pytest.fixture(scope="module")
def store(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned-store")
    cli.main(["embed", "--data", str(tiny_data), "--teacher", tiny_teacher, "--store", str(folder), *EMBED])
    return folder


@pytest.fixture(scope="module")
def recipes(tiny_data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tower → a recipe; the image student's compares with captions, too."""
    folder = tmp_path_factory.mktemp("recipes")
    for tower, loss in (("image", "[cosine, bank_kl]"), ("text", "[mse]")):
        lines = [f"tower: {tower}", f"data: {tiny_data}", f"store: {store}", f"out: {folder / tower}", "seed: 3"]
        lines += [f"student: {{options: {TINY[tower]}}}", f"loss: {{names: {loss}, bank: 50}}"]
        lines += [f"loader: {{batch_size: {4 if tower == 'image' else 8}, workers: 0}}"]
        lines += ["trainer: {max_epochs: 4, accelerator: cpu, enable_progress_bar: false}"]
        (folder / f"{tower}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {tower: folder / f"{tower}.yaml" for tower in ("image", "text")}


@pytest.fixture(scope="module")
def planned(
    tiny_data: Path,
    tiny_teacher: str,
    recipes: dict[str, Path],
    warm_processes: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, Any], str]]:
    """The plan of both towers, each by its recipe, and what was printed."""
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    options = [word for tower, file in recipes.items() for word in (f"--{tower}_recipe", str(file))]
    flags = ["--data", str(tiny_data), "--teacher", tiny_teacher, *EMBED, "--seconds", "0.1", "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main(["plan", *flags, *options])
    assert not any((file.parent / tower).exists() for tower, file in recipes.items()), "nothing is stored"
    yield json.loads(out.read_text(encoding="utf-8")), printed.getvalue()


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_embed_takes_what_the_plan_states(planned: tuple[dict[str, Any], str], store: Path) -> None:
    report, printed = planned
    assert "Measured" in printed
    assert "Extrapolated: embed" in printed
    items = {"image-train": 24, "text-train": 72, "image-val": 8, "text-val": 24}
    assert report["embed"]["counted"]["items"] == items
    embed = report["embed"]["extrapolated"]
    assert embed["tables"].keys() == items.keys()
    for name, table in embed["tables"].items():
        real = Store(store / name)
        assert (table["rows"], table["views"], table["dim"]) == (len(real), real.manifest.views, 32)
        assert table["bytes"] == pytest.approx(bytes_below(store / name), rel=0.1)
        views = sum(path.stat().st_size for path in (store / name).rglob("view-*.npy"))
        assert table["bytes_by_part"]["embeddings"] == views
        assert table["seconds"] > 0
    assert embed["bytes"] == sum(table["bytes"] for table in embed["tables"].values())
    assert embed["seconds"] > sum(table["seconds"] for table in embed["tables"].values())


@pytest.mark.parametrize(("tower", "rows", "batch", "val"), [("image", 24, 4, 8), ("text", 72, 8, 24)])
def test_fit_takes_what_the_plan_states_by_each_towers_recipe(
    tower: str, rows: int, batch: int, val: int, planned: tuple[dict[str, Any], str]
) -> None:
    report, printed = planned
    assert f"fit, {tower} student, steps" in printed
    fit = report["fit"][tower]
    assert fit["options"]["recipe"]["loss"]["names"] == {"image": ["cosine", "bank_kl"], "text": ["mse"]}[tower]
    width = {"image": ("width", 32), "text": ("transformer_width", 16)}[tower]
    assert width in fit["options"]["recipe"]["student"]["options"].items()
    assert (fit["extrapolated"]["rows"], fit["extrapolated"]["steps_per_epoch"]) == (rows, rows // batch)
    assert fit["counted"]["val_rows"] == val
    seconds = fit["measured"]["step"]["seconds"] / fit["measured"]["step"]["items"]
    validation = fit["extrapolated"]["validation_seconds"]
    total = fit["measured"]["startup_seconds"] + 4 * (rows // batch * seconds + validation)
    assert fit["extrapolated"]["seconds"] == pytest.approx(total)
    for measured in (report["embed"]["measured"], fit["measured"]):
        assert 100 * 2**20 < measured["peak_bytes"] < 10 * 2**30  # an interpreter with torch, at least
    assert 1 <= fit["extrapolated"]["largest_batch"] <= rows


def test_the_planned_run_leaves_the_files_that_were_planned(
    planned: tuple[dict[str, Any], str], recipes: dict[str, Path]
) -> None:
    cli.main(["fit", "--recipe", str(recipes["text"]), "--trainer.max_epochs", "1"])
    run = recipes["text"].parent / "text"
    weights = [*run.rglob("*.ckpt"), *run.rglob("*.safetensors")]
    real = sum(path.stat().st_size for path in weights)
    assert planned[0]["fit"]["text"]["extrapolated"]["bytes"] == pytest.approx(real, rel=0.1)


def test_one_tower_needs_the_others_table_for_a_bank_and_unreadable_photos_are_left_out(
    tiny_data: Path, tiny_teacher: str, recipes: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "image").mkdir(parents=True)
    for photo in (tiny_data / "image").iterdir():
        (data / "image" / photo.name).write_bytes(photo.read_bytes())
    for number in range(8):
        (data / "image" / f"broken{number}.jpg").write_bytes(b"not a photo")
    for name in ("COCO", "CC"):
        (data / name).symlink_to(tiny_data / name)
    base = ["plan", "--teacher", tiny_teacher, "--workers", "0", "--device", "cpu", "--seconds", "0.1"]
    base += ["--data", str(data), "--recipe", str(recipes["image"]), "--tower", "image"]
    cli.main([*base, "--out", str(tmp_path / "plan.json")])
    report = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    items = {"image-train": 32, "image-val": 8, "text-train": 72, "text-val": 24}
    assert report["embed"]["counted"]["items"] == items
    assert report["embed"]["measured"]["readable"] == 0.75
    assert report["embed"]["measured"]["skipped"] == {"not an image": 8}
    assert report["embed"]["extrapolated"]["tables"]["image-train"]["rows"] == 24
    assert report["fit"]["image"]["extrapolated"]["rows"] == 24


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_towers_data_alone_is_planned_as_it_is_trained(
    tower: str, tiny_data: Path, tiny_teacher: str, recipes: dict[str, Path], tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"sentence number {i}\n" for i in range(40)), encoding="utf-8")
    sources = {"image": f"--sources.train_images={tiny_data}/image", "text": f"--sources.train_captions={texts}"}
    base = ["--teacher", tiny_teacher, "--workers", "0", "--device", "cpu", sources[tower]]
    flags = [
        "--recipe",
        str(recipes[tower]),
        "--data",
        "null",
        "--tower",
        tower,
        "--loss.names",
        "[cosine]",
        "--holdout",
        "0.3",
    ]
    out = tmp_path / "plan.json"
    cli.main(["plan", *base, *flags, "--seconds", "0.1", "--out", str(out)])
    report = json.loads(out.read_text(encoding="utf-8"))
    rows = {"image": 24, "text": 40}[tower]
    assert report["embed"]["counted"]["items"] == {f"{tower}-train": rows}
    fit = report["fit"][tower]
    held = {"image": 10, "text": 12}[tower]  # 10 at least
    assert (fit["extrapolated"]["rows"], fit["counted"]["val_rows"]) == (rows - held, held)
    with pytest.raises(SystemExit, match="bank_kl: expected .* in the data"):
        cli.main(["plan", *base, *flags, "--loss.names", "[bank_kl]", "--seconds", "0.1"])


def test_without_a_recipe_the_presets_students_are_planned(
    tiny_data: Path, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--data", str(tiny_data), "--teacher", tiny_teacher, "--workers", "0", "--device", "cpu"]
    cli.main(["plan", *base, "--loader.workers", "0", "--seconds", "0.1", "--out", str(tmp_path / "plan.json")])
    assert capsys.readouterr().out.count("preset balanced, from the teacher") == 2
    fit = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["fit"]
    image, text = (fit[tower]["options"]["recipe"] for tower in ("image", "text"))
    assert image["student"]["options"]["width"] == 32 and text["student"]["options"]["transformer_width"] == 16
    assert image["loss"]["names"] == ["cosine", "affinity", "queue_kl"] and text["ema"] == 0.995
    steps = fit["text"]["extrapolated"]["steps_per_epoch"]
    assert steps == 1, "72 captions are one batch of the preset's 256"


def test_recipes_that_do_not_fit_the_towers_are_told(
    tiny_data: Path, tiny_teacher: str, recipes: dict[str, Path], tmp_path: Path
) -> None:
    base = ["plan", "--teacher", tiny_teacher]
    image, text = (["--" + tower + "_recipe", str(file)] for tower, file in recipes.items())
    both = [*base, "--data", str(tiny_data)]
    with pytest.raises(SystemExit, match="--text_recipe .*expected tower: text, found image"):
        cli.main([*both, "--text_recipe", str(recipes["image"])])
    with pytest.raises(SystemExit, match="expected --tower both, found text"):
        cli.main([*both, "--tower", "text", *image, *text])
    (tmp_path / "text.yaml").write_text("sources: {recursive: true}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="recipes to name the same data"):
        cli.main([*both, *image, "--text_recipe", str(tmp_path / "text.yaml")])


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
