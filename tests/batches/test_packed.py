"""A packed copy has the very pixels that rendering gives, and says what it is of."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_distill.batches import packed
from clip_distill.batches.datasets import Images
from clip_distill.batches.loader import DistillData
from clip_distill.batches.pack import pack
from clip_distill.batches.packed import Contents, Packed
from clip_distill.cli import main as cli
from clip_distill.recipe import Loader, Recipe, Student
from clip_distill.store.manifest import StoreError
from clip_distill.teachers import load_teacher
from clip_distill.train.assemble import assemble
from clip_distill.train.samples import OnlineTarget

SMALL = {"input_resolution": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2}
SIDE = 8
CONTENTS = Contents(10, 2, SIDE, SIDE, {"seed": 1})


def make(data: Path, store: Path, folder: Path | None, **changes: object) -> DistillData:
    loader = Loader(batch_size=5, workers=0, packed=None if folder is None else str(folder))
    recipe = Recipe("image", str(data), str(store), "unused", Student(options=dict(SMALL)), loader=loader, seed=4)
    return assemble(replace(recipe, **changes))[1]


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_data`, to change."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of them, even of small photos."""
    monkeypatch.setattr(packed, "SHARD_BYTES", 7 * 32 * 32 * 3)


def same(one: DistillData, other: DistillData) -> None:
    for loaders in ((one.train_dataloader(), other.train_dataloader()), (one.val_dataloader(), other.val_dataloader())):
        for mine, theirs in zip(*loaders, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, Tensor))


def test_batches_are_those_of_rendering_and_need_no_photos(data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    rendered = make(data, tiny_views_store, None)
    batches = list(rendered.train_dataloader()), list(rendered.val_dataloader())
    copies = make(data, tiny_views_store, tmp_path / "packed")
    assert len(list((tmp_path / "packed/train").glob("shard-*.bin"))) > 5
    same(rendered, copies)
    assert isinstance(copies.train, Images)
    for row, view in ((0, 0), (23, 2), (7, 1)):
        assert torch.equal(copies.train[np.array([(row, view)])].inputs[0], rendered.train.render(row, range(3))[view])
    for photo in (*(data / "image").iterdir(), *(data / "COCO/val2017").iterdir()):
        photo.write_bytes(b"no photo any more")
    again = make(data, tiny_views_store, tmp_path / "packed")
    for made, expected in zip((again.train_dataloader(), again.val_dataloader()), batches, strict=True):
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(made, expected, strict=True))


def test_fit_trains_from_a_packed_copy_to_the_same_weights(data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    def fit(name: str, *options: str) -> dict[str, Tensor]:
        flags = [f"--student.options.{key}={value}" for key, value in SMALL.items()]
        base = [
            "--tower",
            "image",
            "--data",
            str(data),
            "--store",
            str(tiny_views_store),
            "--out",
            str(tmp_path / name),
        ]
        trainer = [
            "--trainer.max_epochs",
            "2",
            "--trainer.accelerator",
            "cpu",
            "--trainer.enable_progress_bar",
            "false",
        ]
        cli.main(["fit", "--preset", "none", *base, *flags, *trainer, "--loader.batch_size", "8", *options])
        checkpoint = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        return dict(checkpoint["state_dict"])

    plain = fit("plain", "--loader.workers", "0")
    measured = fit("measured")
    copies = fit("copies", "--loader.packed", str(tmp_path / "packed"))
    assert all(torch.equal(plain[name], measured[name]) and torch.equal(plain[name], copies[name]) for name in plain)


def test_a_copy_of_something_else_is_refused(data: Path, tiny_views_store: Path, tmp_path: Path) -> None:
    make(data, tiny_views_store, tmp_path / "packed")
    larger = Student(options=SMALL | {"input_resolution": 48})
    with pytest.raises(StoreError, match=r"height: expected 48, found 32(.|\n)*Name another folder, delete this one"):
        make(data, tiny_views_store, tmp_path / "packed", student=larger)
    (data / "image/000000000003.jpg").unlink()
    with pytest.raises(StoreError, match=r"ids: expected(.|\n)*rows: expected 23, found 24"):
        make(data, tiny_views_store, tmp_path / "packed")


def test_a_copy_of_other_photos_under_the_same_ids_is_refused(
    data: Path, tiny_teacher: str, tiny_views_store: Path, tmp_path: Path
) -> None:
    make(data, tiny_views_store, tmp_path / "packed")
    shutil.copy(data / "image/000000000004.jpg", data / "image/000000000003.jpg")
    options = ["--views", "3", "--augment", "crop_flip", "--workers", "0", "--device", "cpu", "--dtype", "float32"]
    store = tmp_path / "other"
    cli.main(["embed", "--data", str(data), "--teacher", tiny_teacher, "--store", str(store), *options])
    with pytest.raises(StoreError, match="photos: expected"):
        make(data, store, tmp_path / "packed")


def test_captions_and_fresh_views_are_not_packed(
    tiny_data: Path, tiny_views_store: Path, tiny_teacher: str, tmp_path: Path
) -> None:
    text = Student(options={"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2})
    with pytest.raises(ValueError, match="loader.packed: expected photos with stored targets, found --tower text"):
        make(tiny_data, tiny_views_store, tmp_path / "packed", tower="text", student=text)
    loader = Loader(packed=str(tmp_path / "packed"))
    recipe = Recipe("image", str(tiny_data), str(tiny_views_store), "unused", Student(options=dict(SMALL)))
    online = OnlineTarget(load_teacher(tiny_teacher, "image")[0], "crop_flip")
    with pytest.raises(ValueError, match="found --target online"):
        assemble(replace(recipe, loader=loader), online)


def render(row: int, views: range) -> Tensor:
    """Views of a made-up photo, other ones for each row and view."""
    return torch.stack([torch.full((3, SIDE, SIDE), 10 * row + view, dtype=torch.uint8) for view in views])


def slowly(row: int, views: range) -> Tensor:
    time.sleep(0.1)
    return render(row, views)


def pixels(copy: Packed) -> list[int]:
    rows, views = np.divmod(np.arange(20), 2)
    return copy.read(rows, views)[:, 0, 0, 0].tolist()


EXPECTED = [10 * row + view for row in range(10) for view in range(2)]


A_PHOTO = 2 * 3 * SIDE * SIDE  # bytes of a shard


def test_a_kill_loses_no_finished_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forkserver: ForkServerContext
) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", A_PHOTO)
    process = forkserver.Process(target=alone, args=(tmp_path / "p",))
    process.start()
    end = time.monotonic() + 120
    while len(done := list((tmp_path / "p").glob("shard-*.bin"))) < 3:
        assert time.monotonic() < end, "waited for two minutes in vain"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "p/manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in done}
    with pytest.raises(StoreError, match="seed: expected 2, found 1"):
        pack(tmp_path / "p", replace(CONTENTS, made_from={"seed": 2}), render)
    assert pixels(pack(tmp_path / "p", CONTENTS, render)) == EXPECTED
    assert all(path.stat().st_mtime_ns == before[path] for path in done)
    assert {path.name for path in (tmp_path / "p").iterdir() if path.suffix != ".bin"} == {".lock", "manifest.json"}


def alone(folder: Path) -> None:
    """Pack in a process group of its own, so that its workers die with it."""
    os.setpgid(0, 0)
    packed.SHARD_BYTES = A_PHOTO
    pack_as_a_program(folder)


def pack_as_a_program(folder: Path) -> None:
    """Pack with workers of this process, not of a server that would first import everything."""
    multiprocessing.set_start_method(None, force=True)
    pack(folder, CONTENTS, slowly)


def refuse(row: int, views: range) -> Tensor:
    raise AssertionError("the other process has made this already")


def test_a_second_process_waits_for_the_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forkserver: ForkServerContext
) -> None:
    process = forkserver.Process(target=pack_as_a_program, args=(tmp_path,))
    process.start()
    end = time.monotonic() + 120
    while not (tmp_path / "plan.json").exists():
        assert time.monotonic() < end, "waited for two minutes in vain"
        time.sleep(0.01)
    assert pixels(pack(tmp_path, CONTENTS, refuse)) == EXPECTED
    process.join()
    assert process.exitcode == 0
    assert "another process is making this packed copy; waiting for it" in capsys.readouterr().out


def test_a_damaged_copy_says_how_to_mend_it(tmp_path: Path) -> None:
    pack(tmp_path, CONTENTS, render)
    (tmp_path / "shard-00000.bin").write_bytes(b"short")
    with pytest.raises(StoreError, match=r"expected a file of .* bytes, found none or another size. Delete .*manifest"):
        pack(tmp_path, CONTENTS, render)
    (tmp_path / "manifest.json").unlink()
    assert pixels(pack(tmp_path, CONTENTS, render)) == EXPECTED


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    huge = Contents(1000, 1, 1_000_000, 1_000_000, {})
    with pytest.raises(StoreError, match="expected 3000000.00 GB free for the packed copy, found"):
        pack(tmp_path, huge, render)
    assert not list(tmp_path.glob("*.bin"))
