"""Towers written for other programs: a table of writers, picked by `clip-distill export --format`."""

from __future__ import annotations

# `(folder, image tower, text tower, teacher) -> None`, each tower as (TowerSpec, nn.Module); checks what it wrote
EXPORTS = {
    "open_clip": "clip_distill.exports.open_clip:write",
    "onnx": "clip_distill.exports.onnx:write",
    "onnx-int8": "clip_distill.exports.onnx:write_int8",
}

ONNX_FILE = "onnx.json"  # describes a folder of ONNX files
