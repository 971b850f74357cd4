"""transformers.js: CLIP's two models with projection, in Node or a browser."""

from __future__ import annotations

from pathlib import Path

from clip_distill.exports.target import Given, ImageFile, Target, TextFile
from clip_distill.exports.tokenizer_files import FILES, image_processor, write_tokenizer
from clip_distill.system.files import write_json


def write_beside(folder: Path, given: Given) -> None:
    (image, _), (text, _) = given.image, given.text
    length, size = text.tokenizer["context_length"], text.tokenizer["vocab_size"]
    config = {
        "model_type": "clip",
        "projection_dim": text.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": length,
            "vocab_size": size,
            "projection_dim": text.embed_dim,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": image.preprocess["size"],
            "projection_dim": image.embed_dim,
        },
    }
    write_json(folder / "config.json", config)
    write_tokenizer(folder, text)
    write_json(folder / "preprocessor_config.json", image_processor(image))


TRANSFORMERS_JS = Target(
    name="transformers.js",
    program="transformers.js: CLIPTextModelWithProjection and CLIPVisionModelWithProjection, in Node or a browser",
    image=ImageFile("onnx/vision_model", "pixel_values", "image_embeds"),
    text=TextFile("onnx/text_model", "input_ids", "text_embeds"),
    tokenizers=FILES,
    beside=write_beside,
    suffixes={"fp16": "_fp16", "int8": "_quantized", "int4": "_q4"},
)
