"""A tower in ONNX Runtime; torch is not imported, unless its tokenizer needs it.

Shapes: B batch, S image side, N texts, L tokens of the batch's longest, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_distill.model.encoder import Floats, Pixels
from clip_distill.pixels.plain import to_input
from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.tokens.light import Encode, light_encoder, pad

try:
    import onnxruntime
except ImportError as error:
    raise MissingPackage("ONNX files need onnxruntime; install it with: pip install 'clip-distill[onnx]'") from error

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxEncoder:
    """A file that `export` wrote.

    Args:
        folder: Of the export.
        info: Of the tower, from the folder's onnx.json.
        teacher: The teacher's record, from there.
        device: auto or cpu; cuda where onnxruntime has it.
    """

    def __init__(self, folder: Path, info: dict[str, Any], teacher: dict[str, Any], device: str = "auto") -> None:
        options = onnxruntime.SessionOptions()  # half-precision graphs crash at the last level of optimisation
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        self.session = onnxruntime.InferenceSession(str(folder / info["file"]), options, providers=providers(device))
        self.input, self.output = info["input"]["name"], info["output"]["name"]
        self.dtype = DTYPES[self.session.get_inputs()[0].type]
        self.embed_dim, self.teacher = int(info["output"]["shape"][1]), teacher
        self.preprocess = info.get("preprocess", {})
        self.tokenizer: dict[str, Any] = info.get("tokenizer", {})
        self.width = None if info["input"]["shape"][1] == "length" else self.tokenizer.get("context_length")
        self._encode: Encode | None = None

    def images(self, pixels: Sequence[Pixels], device: str | None) -> Floats:
        if self.dtype is np.uint8:
            return self._run(np.stack(pixels), device)
        return self._run(to_input(pixels, self.preprocess), device)

    def texts(self, texts: Sequence[str], batch_size: int, device: str | None) -> Floats:
        if self._encode is None:
            self._encode = light_encoder(self.tokenizer) or with_torch(self.tokenizer)
        rows = [self._encode(text) for text in texts]
        embeddings = np.empty((len(rows), self.embed_dim), np.float32)
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(rows), batch_size):
            chosen = by_length[start : start + batch_size]
            # an exported text tower takes two tokens at least, which its start and end are
            batch = pad([rows[row] for row in chosen], self.tokenizer["pad_id"], self.width)
            embeddings[chosen] = self._run(batch, device)
        return embeddings

    def _run(self, batch: Any, device: str | None) -> Floats:
        if device not in (None, "auto", "cpu") and providers(device) != self.session.get_providers():
            raise InvalidValue(f"device {device!r}: expected the one that the files were loaded for; load(…, device=…)")
        found: Floats = self.session.run([self.output], {self.input: batch.astype(self.dtype, copy=False)})[0]
        return found


def providers(device: str) -> list[str]:
    """Where onnxruntime runs.

    Raises:
        InvalidValue: It can't run there.
    """
    there = onnxruntime.get_available_providers()
    kind = device.partition(":")[0]
    if kind == "cuda" and "CUDAExecutionProvider" not in there:
        raise InvalidValue(f"device {device!r}: expected an onnxruntime with CUDA (onnxruntime-gpu), found {there}")
    if kind not in ("auto", "cpu", "cuda"):
        raise InvalidValue(f"device {device!r}: expected auto, cpu or cuda for ONNX files")
    on_gpu = kind in ("auto", "cuda") and "CUDAExecutionProvider" in there
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if on_gpu else ["CPUExecutionProvider"]


def with_torch(tokenizer: dict[str, Any]) -> Encode:
    """Hugging Face's tokenizers as such, and open_clip's rarer cleanings."""
    from clip_distill.tokens.encode import tokenize
    from clip_distill.tokens.spec import TokenizerSpec

    spec = TokenizerSpec(**tokenizer)
    return lambda text: [int(id) for id in tokenize(spec, [text]).flat]
