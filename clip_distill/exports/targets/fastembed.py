"""FastEmbed (Qdrant): a text and an image model, each a folder for `specific_model_path`. Read from version 0.9.1."""

from __future__ import annotations

from pathlib import Path

from clip_distill.exports.target import Given, ImageFile, Target, TextFile
from clip_distill.exports.tokenizer_files import FILES, image_processor, write_tokenizer
from clip_distill.system.files import write_json


def write_beside(folder: Path, given: Given) -> None:
    (image, _), (text, _) = given.image, given.text
    write_json(folder / "text/config.json", {"model_type": "clip", "pad_token_id": text.tokenizer["pad_id"]})
    write_tokenizer(folder / "text", text)
    write_json(folder / "image/preprocessor_config.json", image_processor(image))


FASTEMBED = Target(
    name="fastembed",
    program="FastEmbed 0.9: embeddings for Qdrant without torch",
    image=ImageFile("image/model", "pixel_values", "image_embeds"),
    text=TextFile("text/model", "input_ids", "text_embeds"),
    tokenizers=FILES,
    beside=write_beside,
)
