"""Towers for other programs: a table of targets, picked by `clip-distill export --to`."""

from __future__ import annotations

# Each is a `Target`, a record of what a program reads, or `(folder, Given) -> None`, which checks what it wrote
TARGETS = {
    "open_clip": "clip_distill.exports.open_clip:write",
    "onnx": "clip_distill.exports.targets.onnx:ONNX",
    "onnx-uint8": "clip_distill.exports.targets.onnx:ONNX_UINT8",
    "rclip": "clip_distill.exports.targets.rclip:RCLIP",
    "immich": "clip_distill.exports.targets.immich:IMMICH",
    "fastembed": "clip_distill.exports.targets.fastembed:FASTEMBED",
    "transformers.js": "clip_distill.exports.targets.transformers_js:TRANSFORMERS_JS",
}

ONNX_FILE = "onnx.json"  # describes a folder of ONNX files
EXPORT_FILE = "export.json"  # says what made an exported folder, and what was measured
