from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_distill.corpus.layout import scan
from clip_distill.walkthrough.scenes import COLOURS, COUNTS, SHAPES, SIZES, draw_dataset

NUMBERS = {word: count for count, words in COUNTS.items() for word in words}
GROUP = rf"({'|'.join(NUMBERS)}) ({'|'.join(w for s in SIZES.values() for w in s)}) ({'|'.join(COLOURS)}) (\w+)"
BACKGROUND = rf"({'|'.join(COLOURS)}) (?:background|picture)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("scenes") / "data", train=120, val=60, seed=3)


def captions(data: Path, split: str) -> list[tuple[str, str]]:
    """(file name, caption) of every annotation."""
    coco = json.loads((data / f"COCO/annotations/captions_{split}2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    return [(names[a["image_id"]], a["caption"]) for a in coco["annotations"]]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Connected pixels of a mask [H, W], each blob as [pixels, 2] of (row, column); specks are left out."""
    left, found = {(int(r), int(c)) for r, c in np.argwhere(mask)}, []
    while left:
        blob = todo = [left.pop()]
        for row, column in todo:
            near = {(row + dr, column + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)} & left
            left -= near
            blob.extend(near)
        if len(blob) > 4:
            found.append(np.array(blob))
    return found


def test_same_seed_draws_the_same_files(data: Path, tmp_path: Path) -> None:
    again = draw_dataset(tmp_path / "again", train=120, val=60, seed=3)
    assert digests(again) == digests(data)
    other = draw_dataset(tmp_path / "other", train=120, val=60, seed=4)
    assert captions(other, "train") != captions(data, "train")


def test_every_caption_tells_what_is_in_the_pixels(data: Path) -> None:
    """Count, colour, size, position and background, read from the caption and found again in the JPEG."""
    palette = np.array(list(COLOURS.values()))
    for name, caption in captions(data, "val"):
        pixels = np.asarray(Image.open(data / "COCO/val2017" / name).convert("RGB")).astype(int)
        nearest = np.abs(pixels[:, :, None] - palette).sum(-1)
        colour_of = np.where(nearest.min(-1) < 60, nearest.argmin(-1), -1)  # -1: a blend on an edge
        groups = re.findall(GROUP, caption)
        (background,) = re.findall(BACKGROUND, caption)
        assert len(groups) == 2, caption
        assert colour_of[0, 0] == list(COLOURS).index(background), caption
        centres = []
        for number, size, colour, noun in groups:
            found = blobs(colour_of == list(COLOURS).index(colour))
            assert len(found) == NUMBERS[number], (name, caption)
            assert noun == (noun if noun in SHAPES else SHAPES[next(s for s, p in SHAPES.items() if p == noun)])
            assert (noun in SHAPES) == (NUMBERS[number] == 1), caption
            extent = max(np.ptp(blob, axis=0).max() + 1 for blob in found)
            assert (extent > 11) == (size in SIZES["large"]), (name, caption, extent)
            centres.append(np.concatenate(found).mean(0))
        vertical = re.search(r"above|below|over|top", caption) is not None
        reverse = re.search(r"below|right of", caption) is not None
        first, second = (c[0 if vertical else 1] for c in (centres[::-1] if reverse else centres))
        assert first < 32 < second, (name, caption)


def test_shapes_differ_in_area(data: Path) -> None:
    """A ring has a hole and a square has none: at its centre, a shape's colour is there or is not."""
    checked = set()
    for name, caption in captions(data, "train"):
        for number, size, colour, noun in re.findall(GROUP, caption):
            if NUMBERS[number] == 1 and size in SIZES["large"] and noun in ("ring", "square", "circle"):
                pixels = np.asarray(Image.open(data / "image" / name).convert("RGB")).astype(int)
                mask = np.abs(pixels - np.array(COLOURS[colour])).sum(-1) < 60
                rows, columns = np.argwhere(mask).min(0), np.argwhere(mask).max(0)
                centre = (rows + columns) // 2
                filled = mask.sum() / np.prod(columns - rows + 1)
                assert mask[tuple(centre)] == (noun != "ring"), (name, caption)
                assert (filled > 0.84) == (noun == "square"), (name, caption, filled)
                checked.add(noun)
    assert checked == {"ring", "square", "circle"}


def test_layout_reads_it_back(data: Path) -> None:
    corpus = scan(str(data))
    assert corpus.train.images.num_rows == 120 and corpus.val.images.num_rows == 60
    assert corpus.val.captions.num_rows == 180
    texts = corpus.train.captions.column("text").to_pylist()
    assert len(texts) == 2 * 120 + 240
    assert set(texts).isdisjoint(corpus.val.captions.column("text").to_pylist())


def test_a_second_run_keeps_the_folder_and_other_arguments_draw_anew(tmp_path: Path) -> None:
    out = draw_dataset(tmp_path / "data", train=4, val=2)
    before = (out / "image/train_000000.jpg").stat().st_mtime_ns
    draw_dataset(out, train=4, val=2)
    assert (out / "image/train_000000.jpg").stat().st_mtime_ns == before
    draw_dataset(out, train=3, val=2)
    assert len(list((out / "image").iterdir())) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["data"], "the folder written aside is gone"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"scenes\.json"):
        draw_dataset(tmp_path, train=2, val=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"
