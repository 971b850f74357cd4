"""What several benchmarks start from: a part of a data folder, and a teacher of ViT-B/32's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch

from clip_distill.corpus.layout import Split, scan
from clip_distill.system.files import write_json


def make_part(data: str, folder: Path, images: int, val_images: int | None = None) -> None:
    """A data folder of the first photos, as links, with their captions.

    Args:
        data: The whole folder, in the documented layout.
        folder: The folder to make.
        images: Training photos.
        val_images: Photos to validate on; by default a quarter as many.
    """
    corpus = scan(data)
    for split, name, photos, count in (
        (corpus.train, "train", "image", images),
        (corpus.val, "val", "COCO/val2017", images // 4 if val_images is None else val_images),
    ):
        (folder / photos).mkdir(parents=True)
        chosen = split.require_images().slice(0, count)
        for number, path in enumerate(chosen.column("path").to_pylist()):
            (folder / photos / f"{number:06d}{Path(path).suffix}").symlink_to(Path(path).resolve())
        write_json(folder / f"COCO/annotations/captions_{name}2017.json", coco(split, chosen.column("id").to_pylist()))


def coco(split: Split, ids: list[str]) -> dict[str, Any]:
    """The captions of some photos, in COCO's format."""
    number = {id: place for place, id in enumerate(ids)}
    captions = split.require_captions().to_pylist()
    kept = [caption for caption in captions if caption["image_id"] in number]
    return {
        "images": [{"id": place, "file_name": f"{place:06d}{Path(id).suffix}"} for id, place in number.items()],
        "annotations": [
            {"id": place, "image_id": number[each["image_id"]], "caption": each["text"]}
            for place, each in enumerate(kept)
        ],
    }


def save_big_teacher(folder: Path, name: str = "ViT-B-32") -> str:
    """Write an open_clip model of random weights, which cost as much to run as trained ones; its name as a teacher."""
    model = open_clip.create_model(name)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_model(model, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": model.visual.preprocess_cfg}
    write_json(folder / "open_clip_config.json", config)
    return f"local-dir:{folder}"
