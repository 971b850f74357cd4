"""A teacher and a data folder small enough for every test: real files, drawn in milliseconds."""

from __future__ import annotations

import os

# Before torch is loaded, here and in the processes that tests start: two threads for tensors this small take three
# times as long as one, and two tests at a time share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from clip_distill.cli import main as cli
from clip_distill.students.image import vit
from clip_distill.students.text import transformer
from clip_distill.system.talk import to_console
from clip_distill.teachers import load_teacher
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import save_tower

# What was imported stays: each `embed` collects garbage before it starts processes, and need not go through all of it
gc.collect()
gc.freeze()

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "bar", "frame")


# Files that take longest come first, so that no process works on one alone at the end.
SLOWEST = ("test_gpu_check.py", "test_plan.py", "test_s3.py", "test_main.py", "test_cluster.py", "test_quickstart.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOWEST)


def save_teacher(
    folder: Path,
    *,
    custom_text: bool,
    seed: int = 0,
    quick_gelu: bool = False,
    timm_model: str | None = None,
    image_size: int = 32,
) -> str:
    """Write an open_clip folder with a two-layer ViT of 16 patches and text transformer (D = 32); return its name as a
    teacher."""
    vision: dict[str, Any] = {"image_size": image_size, "patch_size": image_size // 4}
    vision |= {"width": 64, "layers": 2, "head_width": 32}
    if timm_model is not None:
        vision = {
            "image_size": 32,
            "timm_model_name": timm_model,
            "timm_model_pretrained": False,
            "timm_proj": "linear",
        }
    cfg: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": vision,
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        "quick_gelu": quick_gelu,
    }
    torch.manual_seed(seed)
    model = (CustomTextCLIP if custom_text else CLIP)(**cfg)
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": cfg | ({"custom_text": True} if custom_text else {}), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of tars and copies of remote files go to a folder that the tests leave, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def lines_on_standard_output() -> None:
    """What the package says is printed, as the command line does."""
    to_console()


@pytest.fixture(scope="session", autouse=True)
def no_page_for_each_run() -> Iterator[None]:
    """Hundreds of runs are trained, each of which would end with seconds of drawing; `tests/reporting` draws some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_distill.verbs.fit.show", lambda run, device: None)
        yield


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Makes processes that have imported everything: each by itself would take seconds for it."""
    context = multiprocessing.get_context("forkserver")
    train = ["clip_distill.train.begin", "clip_distill.train.trainer", "clip_distill.planning.training"]
    context.set_forkserver_preload([*train, "clip_distill.planning.embedding", "clip_distill.benchmarking.in_torch"])
    return context


@pytest.fixture(scope="module")
def warm_processes(forkserver: ForkServerContext) -> Iterator[None]:
    """Lets `plan` and `benchmark` measure in such processes, where what is measured is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("clip_distill.system.processes", "clip_distill.benchmarking.variant"):
            patch.setattr(f"{module}.get_context", lambda method: forkserver)
        yield


@pytest.fixture(scope="session")
def make_teacher() -> Callable[..., str]:
    """`save_teacher`, for tests that want others than `tiny_teacher`."""
    return save_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`local-dir:…` of an open_clip folder with separate towers (`custom_text`); its weights are random."""
    return save_teacher(tmp_path_factory.mktemp("teacher"), custom_text=True)


@pytest.fixture(scope="session")
def tiny_plain_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model in open_clip's older form, with the text tower's weights at the top level."""
    return save_teacher(tmp_path_factory.mktemp("plain-teacher"), custom_text=False)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: 24 photos of 48×40 in `image/`, 8 in `COCO/val2017/`, COCO captions (2 a photo to train, 3 to
    validate, none given twice) and 24 lines of Conceptual Captions."""
    root = tmp_path_factory.mktemp("data")
    draw_split(root / "image", root / "COCO/annotations/captions_train2017.json", range(24), captions=2)
    draw_split(root / "COCO/val2017", root / "COCO/annotations/captions_val2017.json", range(24, 32), captions=3)
    lines = [f"{describe(i)} seen from afar\thttps://example.invalid/{i}.jpg\n" for i in range(24)]
    (root / "CC").mkdir()
    (root / "CC/Train_GCC-training.tsv").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def tiny_store(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_teacher`'s float32 embeddings of the validation split of `tiny_data`."""
    store = tmp_path_factory.mktemp("store")
    options = ["--split", "val", "--workers", "0", "--device", "cpu", "--dtype", "float32"]
    cli.main(["embed", "--data", str(tiny_data), "--teacher", tiny_teacher, "--store", str(store), *options])
    return store


@pytest.fixture(scope="session")
def tiny_runs(tiny_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tower → folder of an untrained student of `tiny_teacher`, laid out as `fit` leaves it."""
    teacher = load_teacher(tiny_teacher, "image")[0].teacher
    torch.manual_seed(1)
    students = {
        "image": vit(teacher, input_resolution=32, patch_size=16, width=16, layers=1, heads=2),
        "text": transformer(teacher, transformer_width=16, transformer_layers=1, transformer_heads=2),
    }
    folders = {tower: tmp_path_factory.mktemp(f"run-{tower}") for tower in students}
    for tower, (spec, module) in students.items():
        save_tower(folders[tower] / "student", spec, module)
    return folders


@pytest.fixture(scope="session")
def exported(tiny_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `export --to onnx` leaves for both students of `tiny_runs`, in float32; to be read alone."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    students = ["--image_student", str(tiny_runs["image"]), "--text_student", str(tiny_runs["text"])]
    cli.main(["export", *students, "--to", "onnx", "--out", str(folder)])
    return folder


@pytest.fixture(scope="session")
def tiny_views_store(tiny_teacher: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_teacher`'s float32 embeddings of all of `tiny_data`, with two `crop_flip` views beside the plain."""
    store = tmp_path_factory.mktemp("views-store")
    options = ["--views", "3", "--augment", "crop_flip", "--workers", "0", "--device", "cpu", "--dtype", "float32"]
    cli.main(["embed", "--data", str(tiny_data), "--teacher", tiny_teacher, "--store", str(store), *options])
    return store


def teacher_record(embed_dim: int = 512, quick_gelu: bool = False) -> dict[str, Any]:
    """What a store's manifest would say of a CLIP of this width."""
    return {
        "name": "made-up",
        "weights_sha256": "0" * 64,
        "embed_dim": embed_dim,
        "logit_scale": 100.0,
        "model_cfg": {"embed_dim": embed_dim, "quick_gelu": quick_gelu, "vision_cfg": {}, "text_cfg": {}},
        "preprocess": {"size": 224, "mode": "RGB", "mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bicubic"}
        | {"resize_mode": "shortest", "fill_color": 0},
        "tokenizer": TokenizerSpec("clip", 77, 49408).as_dict(),
    }


@pytest.fixture(scope="session")
def make_record() -> Callable[..., dict[str, Any]]:
    """`teacher_record`: students are built from the record alone, so no teacher is needed."""
    return teacher_record


def describe(scene: int) -> str:
    return f"a {COLOURS[scene % 8]} {SHAPES[scene // 8 % 4]} on {COLOURS[(scene + 3) % 8]}"


def draw_split(photos: Path, annotations: Path, scenes: range, captions: int) -> None:
    """Draw one JPEG per scene and write its captions in COCO's format."""
    photos.mkdir(parents=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    phrases = ("a picture of {}", "{}", "there is {}")
    coco: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for scene in scenes:
        name = f"{scene:012d}.jpg"
        draw_scene(scene).save(photos / name, quality=95)
        coco["images"].append({"id": scene, "file_name": name, "width": 48, "height": 40})
        for phrase in phrases[:captions]:
            number = len(coco["annotations"])
            coco["annotations"].append({"id": number, "image_id": scene, "caption": phrase.format(describe(scene))})
    annotations.write_text(json.dumps(coco), encoding="utf-8")


def draw_scene(scene: int) -> Image.Image:
    image = Image.new("RGB", (48, 40), COLOURS[(scene + 3) % 8])
    colour, shape = COLOURS[scene % 8], SHAPES[scene // 8 % 4]
    draw = ImageDraw.Draw(image)
    box = (10, 6, 34, 30)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "bar":
        draw.rectangle((4, 16, 44, 24), fill=colour)
    else:
        draw.rectangle(box, outline=colour, width=4)
    return image


class StopAt(L.Callback):
    """Ends the run as a crash would, after a number of steps, of which the last is saved where a folder is given."""

    def __init__(self, step: int, folder: str | None = None) -> None:
        self.step, self.folder = step, folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            if self.folder is not None:
                trainer.save_checkpoint(Path(self.folder) / "last.ckpt")
            raise RuntimeError("stopped by the test")


@pytest.fixture(scope="session")
def stop_at() -> Callable[..., str]:
    """A flag of `fit` with which a run ends in `RuntimeError("stopped by the test")`: `StopAt`'s arguments → flag."""

    def flag(step: int, folder: Path | None = None) -> str:
        arguments = {"step": step} | ({} if folder is None else {"folder": str(folder)})
        return f"--trainer.callbacks+={yaml.safe_dump({'class_path': f'{__name__}.StopAt', 'init_args': arguments})}"

    return flag


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real Chromium without a screen, by Playwright; the test is skipped where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=quiet.split())
        yield chromium
        chromium.close()
