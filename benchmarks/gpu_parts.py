"""What the GPU check works on: photos, captions, teachers and stores, drawn and made once."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from parts import save_big_teacher
from PIL import Image

from clip_distill.walkthrough.scenes import draw_dataset

if TYPE_CHECKING:
    from gpu_results import Results

TINY_TEACHER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TINY_STUDENTS: dict[str, dict[str, Any]] = {
    "image": {"input_resolution": 64, "patch_size": 32, "width": 32, "layers": 1, "heads": 2},
    "text": {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2},
}
DISTINCT = 512  # photos that are drawn; links to them make the others


@dataclass(eq=False)
class Check:
    """One run of the check.

    Args:
        root: A folder for everything that is made.
        device_name: cuda, cuda:1 or cpu.
        tiny: Small models and batches.
        results: Where measurements go.
    """

    root: Path
    device_name: str
    tiny: bool
    results: Results

    @property
    def device(self) -> torch.device:
        device = torch.device(self.device_name)
        return torch.device(device.type, device.index or 0)  # some of torch's functions want a number

    @property
    def workers(self) -> int:
        """Processes that decode."""
        return 1 if self.tiny else max(1, len(os.sched_getaffinity(0)) - 2)

    @property
    def warm(self) -> float:
        """Seconds before the clock starts: a GPU meets each length of captions for the first time."""
        return 0.0 if self.tiny else 2.5

    @property
    def moment(self) -> float:
        """Seconds of one measurement."""
        return 0.1 if self.tiny else 1.5

    def student(self, tower: str) -> dict[str, Any]:
        """Options of the student: the default's, or small ones."""
        return dict(TINY_STUDENTS[tower]) if self.tiny else {}

    @functools.cached_property
    def data(self) -> Path:
        """Photos and captions."""
        began = time.monotonic()
        distinct, photos, captions = (24, 32, 256) if self.tiny else (DISTINCT, 8_192, 49_152)
        small = draw_dataset(self.root / "small", distinct, 24 if self.tiny else 128, seed=0)
        folder = self.root / "data"
        shutil.copytree(small / "COCO", folder / "COCO")
        shutil.copytree(small / "CC", folder / "CC")
        (folder / "image").mkdir()
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(lambda path: enlarge(path, folder / "image" / path.name), (small / "image").iterdir()))
            list(pool.map(lambda path: enlarge(path, path), (folder / "COCO/val2017").iterdir()))
        drawn = sorted((folder / "image").iterdir())
        for number in range(photos - distinct):
            os.link(drawn[number % distinct], folder / "image" / f"copy_{number:06d}.jpg")
        add_captions(folder, captions)
        self.results.log(f"drew {photos:,} photos ({distinct:,} different ones) in {time.monotonic() - began:.1f} s")
        return folder

    @functools.cache  # noqa: B019  # one Check lives as long as the program
    def teacher(self, name: str) -> str:
        """A teacher of this open_clip model's size and random weights, by its name."""
        if self.tiny:
            folder = self.root / "models"
            folder.mkdir(exist_ok=True)
            (folder / f"tiny-{name}.json").write_text(json.dumps(TINY_TEACHER), encoding="utf-8")
            open_clip.add_model_config(folder)
            return save_big_teacher(self.root / name, f"tiny-{name}")
        with torch.device(self.device):  # random weights are drawn where that is fast
            return save_big_teacher(self.root / name, name)

    @functools.cached_property
    def store(self) -> Path:
        """The ViT-B/32-size teacher's embeddings of all photos and captions."""
        from clip_distill.verbs import run

        began = time.monotonic()
        folder = self.root / "store"
        options = ["--data", str(self.data), "--teacher", self.teacher("ViT-B-32"), "--store", str(folder)]
        options += ["--device", self.device_name, "--workers", str(self.workers)]
        run(
            "embed",
            [*options, "--batch_size", "8" if self.tiny else "512", "--precision", "fp32" if self.tiny else "fp16"],
        )
        self.results.log(f"embedded all of it in {time.monotonic() - began:.1f} s, loading included")
        return folder


def enlarge(source: Path, target: Path) -> None:
    """A scene as large as photos are, with the noise that makes a JPEG cost what a photo's does to decode."""
    with Image.open(source) as scene:
        picture = scene.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
    noise = Image.effect_noise(picture.size, 24).convert("RGB")
    Image.blend(picture, noise, 0.15).save(target, quality=90)


def add_captions(folder: Path, count: int) -> None:
    """Make the captions so many, by other endings."""
    file = folder / "CC/Train_GCC-training.tsv"
    lines = [line.split("\t")[0] for line in file.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(0)
    ends = ("at night", "in the morning", "on a table", "seen from above", "in a small room", "by the sea")
    more = [
        f"{draw.choice(lines)} {draw.choice(ends)}, take {number}\thttps://example.org/{number}\n"
        for number in range(count)
    ]
    with open(file, "a", encoding="utf-8") as out:
        out.writelines(more)
