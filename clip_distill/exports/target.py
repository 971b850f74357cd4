"""What a program reads, as a small record; `program.write` makes the files that a record describes.

A record meets what the program fixes within the graph: its normalisation is undone, another input size resized, int32
ids widened, padding of another kind replaced, the output brought to unit length and filled with zeros to a width that
the program insists on. Cosines are those of the student in any case.

Shapes: B batch, S image side, L tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_distill.runtimes import RUNTIMES
from clip_distill.towers.spec import TowerSpec

Loaded = tuple[TowerSpec, nn.Module]
Weights = Literal["fp32", "fp16", "int8", "int4"]
Pixels = NDArray[np.uint8]
Photos = Sequence[dict[str, Any]]
Feed = Sequence[NDArray[Any]]  # batches of one input

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Given:
    """What is exported.

    Args:
        image: Spec and module of the image tower, on the CPU.
        text: Spec and module of the text tower, on the CPU.
        teacher: Record of the teacher, whose `logit_scale` (and `logit_bias`, for SigLIP) travels along.
        weights: fp32, fp16, int8 or int4.
        photos: Some of the user's own, as `corpus.layout` lists them (path, offset, size), to set int8's ranges by and
            to compare on; without them convolutions stay in float32.
        captions: The user's own captions, to compare on beside made-up ones.
        min_cosine: Enough, to the student in torch; None: by `weights`.
    """

    image: Loaded
    text: Loaded
    teacher: dict[str, Any]
    weights: Weights = "fp32"
    photos: Photos = ()
    captions: Sequence[str] = ()
    min_cosine: float | None = None


@dataclass(frozen=True)
class Graph:
    """A tower as a program calls it, for a runtime's writer.

    Args:
        module: On the CPU, in eval mode.
        example: An input [B, …].
        free: Axis → `torch.export.Dim`, for those of the input that are free.
        names: Of input and output.
        weights: fp32, fp16, int8 or int4.
        calibration: Batches that int8's ranges of activations are set by.
        enough: Mean cosine for which int8 leaves some layers in float32.
    """

    module: nn.Module
    example: Tensor
    free: Mapping[int, Any]
    names: tuple[str, str]
    weights: Weights = "fp32"
    calibration: Feed = ()
    enough: float = 0.0


@dataclass(frozen=True)
class ImageFile:
    """How a program feeds photos.

    Args:
        file: Its place in the folder, without the ending; `{suffix}` is filled by `Target.suffixes`.
        input: Name of the input.
        output: Name of the output.
        size: S that the program feeds; None: the tower's own.
        mean: That the program subtracts; None: the tower's own.
        std: That it divides by.
        dtype: float32, normalised; or uint8, which the graph normalises by the tower's own mean and std.
        layout: NCHW or NHWC.
    """

    file: str
    input: str
    output: str
    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dtype: Literal["float32", "uint8"] = "float32"
    layout: Literal["NCHW", "NHWC"] = "NCHW"


@dataclass(frozen=True)
class TextFile:
    """How a program feeds tokens.

    Args:
        file: Its place in the folder, without the ending.
        input: Name of the input.
        output: Name of the output.
        dtype: Of the ids.
        length: L that the program always feeds; "context": the tower's context length; "free": any up to it.
    """

    file: str
    input: str
    output: str
    dtype: Literal["int64", "int32", "float32"] = "int64"
    length: int | Literal["context", "free"] = "free"


@dataclass(frozen=True)
class Target:
    """A program that a student drops into.

    Args:
        name: As in `--to`.
        program: What it is for, a line.
        image: How it feeds photos.
        text: How it feeds tokens.
        unit: Outputs are of unit length.
        widths: Widths that the program knows; outputs are filled with zeros to the least that holds D. Empty: any.
        tokenizers: Sources of tokenizers that it can run; empty: any whose ids need no file.
        beside: Writes what else the program reads, given the folder and what is exported.
        suffixes: Weights → what the program's file names end in.
        licence: Of files that are copied from elsewhere, a line for the card; empty: none.
        runtime: What runs the files, of `runtimes.RUNTIMES`.
    """

    name: str
    program: str
    image: ImageFile
    text: TextFile
    unit: bool = True
    widths: tuple[int, ...] = ()
    tokenizers: tuple[str, ...] = ()
    beside: Callable[[Path, Given], None] = field(default=lambda folder, given: None)
    suffixes: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    runtime: str = "onnx"

    def width(self, dim: int) -> int:
        """The width of the outputs for embeddings of D numbers; D itself where the program takes any."""
        return min((width for width in self.widths if width >= dim), default=0) if self.widths else dim

    def place(self, file: str, weights: str) -> str:
        """A file's path within the folder."""
        return f"{file}{self.suffixes.get(weights, '')}{RUNTIMES[self.runtime].suffix}"
