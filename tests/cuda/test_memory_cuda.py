"""A GPU's memory: what is said when it runs out, and how well a plan foresees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import clip_distill as cd
from clip_distill.cli import main as cli

pytestmark = pytest.mark.cuda
WIDE = "{transformer_width: 256, transformer_layers: 4, transformer_heads: 4}"


@pytest.fixture
def little_memory(device: str) -> Iterator[None]:
    """A card of which 0.7 GB may be used."""
    if device != "cuda":
        pytest.skip("a CPU's memory is not capped; tests/train/test_out_of_memory.py has the error")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.7e9 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_that_is_too_large_is_told_with_one_that_fits(
    little_memory: None, tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    captions = tmp_path / "captions.tsv"
    captions.write_text("".join(f"{'word ' * 70}{number}\tu\n" for number in range(4096)), encoding="utf-8")
    sources = ["--sources.train_captions", str([str(captions)])]
    places = ["--data", str(tiny_data), "--store", str(store), *sources]
    cli.main(["embed", *places, "--teacher", tiny_teacher, "--device", "cpu"])
    fit = [
        "fit",
        "--preset",
        "none",
        "--tower",
        "text",
        *places,
        "--student.options",
        WIDE,
        "--trainer.max_epochs",
        "1",
    ]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*fit, "--out", str(tmp_path / "run"), "--loader.batch_size", "4096"])
    told = re.search(
        r"ran out of memory at --loader.batch_size 4096: --loader.batch_size (\d+) fits", str(stopped.value)
    )
    assert told, stopped.value
    cli.main([*fit, "--out", str(tmp_path / "fits"), "--loader.batch_size", told[1], "--trainer.max_steps", "3"])


def test_embedding_says_which_batch_fits(little_memory: None, make_teacher: Callable[..., str], tmp_path: Path) -> None:
    from clip_distill.store.embed import Runner
    from clip_distill.teachers import load_teacher
    from clip_distill.verbs.embed import _memory_explained

    teacher = make_teacher(tmp_path / "teacher", custom_text=True)
    runner = Runner(*load_teacher(teacher, "text"), torch.device("cuda"), batch_size=2**17)
    with pytest.raises(cd.OutOfMemory, match=r"--batch_size 131072: --batch_size \d+ fits"), _memory_explained(runner):
        runner(runner.blank(runner.batch_size))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_plan_foresees_the_peak(
    tower: str, device: str, fit: Callable[..., Path], tiny_data: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    """Within 15 per cent, of a student that is large beside what CUDA itself takes."""
    if device != "cuda":
        pytest.skip("the device's memory is counted on a GPU alone")
    options = {
        "image": "{input_resolution: 64, patch_size: 16, width: 384, layers: 6, heads: 6}",
        "text": "{transformer_width: 256, transformer_layers: 4, transformer_heads: 4}",
    }[tower]
    common = ["--student.options", options, "--loader.batch_size", "8", "--loader.workers", "0"]
    places = ["--data", str(tiny_data), "--teacher", tiny_teacher, "--tower", tower]
    cli.main(["plan", *places, *common, "--seconds", "0.5", "--out", str(tmp_path / "plan.json")])
    planned = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["fit"][tower]["measured"]
    fit(tower, tmp_path / "run", *common, "--student.name", {"image": "vit", "text": "transformer"}[tower])
    real = torch.cuda.max_memory_allocated()
    assert planned["device_peak_bytes"] == pytest.approx(real, rel=0.15)
