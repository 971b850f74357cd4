"""A tower in an exported file, run by its runtime; torch is not imported, unless the runtime or the tokenizer needs it.

Shapes: B batch, S image side, N texts, L tokens of the batch's longest, D embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_distill.model.encoder import Floats, Pixels
from clip_distill.pixels.plain import to_input
from clip_distill.runtimes import open_file
from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.light import Encode, light_encoder, pad


class FileEncoder:
    """A file that `export` wrote.

    Args:
        folder: Of the export.
        described: The folder's towers.json.
        tower: Which.
        device: auto or cpu; cuda where the runtime has it.
    """

    def __init__(self, folder: Path, described: dict[str, Any], tower: str, device: str = "auto") -> None:
        info = described[tower]
        self.opened = open_file(described["runtime"], folder / info["file"], device, described["weights"])
        self.dtype, self.layout = np.dtype(info["input"]["dtype"]), info["input"].get("layout")
        self.embed_dim, self.teacher = int(info["output"]["shape"][1]), described["teacher"]
        self.preprocess = info.get("preprocess", {})
        self.tokenizer: dict[str, Any] = info.get("tokenizer", {})
        self.width = None if info["input"]["shape"][1] == "length" else self.tokenizer.get("context_length")
        self._encode: Encode | None = None
        self.folder = folder

    def images(self, pixels: Sequence[Pixels], device: str | None) -> Floats:
        batch = np.stack(pixels) if self.dtype == np.uint8 else to_input(pixels, self.preprocess)
        channels_last = batch.shape[-1] == 3
        if channels_last != (self.layout == "NHWC"):
            batch = batch.transpose((0, 3, 1, 2) if channels_last else (0, 2, 3, 1))
        return self._run(batch, device)

    def for_threads(self) -> FileEncoder | None:
        if self.opened.for_threads is None:
            return None
        twin = copy.copy(self)
        twin.opened = self.opened.for_threads()
        return twin

    def texts(self, texts: Sequence[str], batch_size: int, device: str | None) -> Floats:
        if self._encode is None:
            self._encode = light_encoder(self.tokenizer, self.folder) or with_torch(self.tokenizer)
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
        if device not in (None, "auto", self.opened.device):
            raise InvalidValue(
                f"device {device!r}: expected {self.opened.device}, which the files were loaded for; load(…, device=…)"
            )
        return self.opened.run(np.ascontiguousarray(batch.astype(self.dtype, copy=False)))


def with_torch(tokenizer: dict[str, Any]) -> Encode:
    """Hugging Face's tokenizers as such, and open_clip's rarer cleanings."""
    from clip_distill.tokens.encode import tokenize
    from clip_distill.tokens.spec import TokenizerSpec

    spec = TokenizerSpec(**tokenizer)
    return lambda text: [int(id) for id in tokenize(spec, [text]).flat]
