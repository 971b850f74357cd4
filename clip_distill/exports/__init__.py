"""Towers for other programs: a table of targets, picked by `clip-distill export --to`."""

from __future__ import annotations

# Each is a `Target`, a record of what a program reads, or `(folder, Given) -> None`, which checks what it wrote
TARGETS = {
    "open_clip": "clip_distill.exports.open_clip:write",
    "transformers": "clip_distill.exports.transformers:write",
    "sentence-transformers": "clip_distill.exports.sentence_transformers:write",
    "onnx": "clip_distill.exports.targets.onnx:ONNX",
    "onnx-uint8": "clip_distill.exports.targets.onnx:ONNX_UINT8",
    "ort": "clip_distill.exports.targets.runtimes:ORT",
    "openvino": "clip_distill.exports.targets.runtimes:OPENVINO",
    "executorch": "clip_distill.exports.targets.runtimes:EXECUTORCH",
    "litert": "clip_distill.exports.targets.runtimes:LITERT",
    "coreml": "clip_distill.exports.targets.runtimes:COREML",
    "rclip": "clip_distill.exports.targets.rclip:RCLIP",
    "immich": "clip_distill.exports.targets.immich:IMMICH",
    "fastembed": "clip_distill.exports.targets.fastembed:FASTEMBED",
    "picquery": "clip_distill.exports.targets.picquery:PICQUERY",
    "queryable": "clip_distill.exports.targets.queryable:QUERYABLE",
    "web": "clip_distill.exports.targets.web:WEB",
    "transformers.js": "clip_distill.exports.targets.transformers_js:TRANSFORMERS_JS",
}

# What the functions among them are for, and what each needs; a record says so itself
PROGRAMS = {
    "open_clip": ("open_clip and all that loads its folders, clip_benchmark among them", ""),
    "transformers": ("transformers' AutoModel", "'clip-distill[transformers]'"),
    "sentence-transformers": ("SentenceTransformer(DIR).encode", "'clip-distill[sentence-transformers]'"),
}

OPEN_CLIP_FILE = "open_clip_config.json"
TOWERS_FILE = "towers.json"  # says how the files of an exported folder are fed
EXPORT_FILE = "export.json"  # says what made an exported folder, and what was measured
