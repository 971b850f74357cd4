"""Immich's machine learning service: the layout of its OpenCLIP models, read from its code of 2026-11."""

from __future__ import annotations

from pathlib import Path

from clip_distill.exports.target import Given, ImageFile, Target, TextFile
from clip_distill.exports.tokenizer_files import FILES, cleaning, write_tokenizer
from clip_distill.pixels.plain import open_clip_cfg
from clip_distill.system.files import write_json


def write_beside(folder: Path, given: Given) -> None:
    """config.json, the tokenizer's files and the preprocessing."""
    (image, _), (text, _) = given.image, given.text
    length = text.tokenizer["context_length"]
    text_cfg = {"context_length": length, "vocab_size": text.tokenizer["vocab_size"], **cleaning(text.tokenizer)}
    config = {"embed_dim": IMMICH.width(text.embed_dim), "vision_cfg": {"image_size": image.preprocess["size"]}}
    write_json(folder / "config.json", config | {"text_cfg": text_cfg})
    write_tokenizer(folder / "textual", text)
    write_json(folder / "visual/preprocess_cfg.json", open_clip_cfg(image.preprocess))


IMMICH = Target(
    name="immich",
    program="Immich: smart search on your own server (machine-learning cache, in place of a listed model)",
    image=ImageFile("visual/model", "image", "embedding"),
    text=TextFile("textual/model", "text", "text_embedding", dtype="int32", length="context"),
    widths=(512, 640, 768, 1024, 1152),
    tokenizers=FILES,
    beside=write_beside,
)
