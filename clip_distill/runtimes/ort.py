"""ONNX Runtime's own format, for its small builds on phones; the whole one reads it, too."""

from __future__ import annotations

from clip_distill.runtimes.onnx import open_file

__all__ = ["open_file"]
