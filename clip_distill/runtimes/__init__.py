"""What runs an exported file: a row for each runtime. Reading the table imports none of them, and none needs torch.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.registry import resolve


@dataclass(frozen=True)
class Opened:
    """A file, ready to run.

    Args:
        run: Inputs [B, …] → float32 [B, D].
        device: Where: cpu, cuda.
        for_threads: Opens it again, to be run by several threads at once, each on a core of its own; None where the
            runtime can't.
    """

    run: Callable[[NDArray[Any]], NDArray[np.float32]]
    device: str
    for_threads: Callable[[], Opened] | None = None


@dataclass(frozen=True)
class Runtime:
    """A kind of file.

    Args:
        suffix: Of its name.
        reader: `module:Attr` of `(path, device, weights) -> Opened`; empty where it runs elsewhere alone.
        writer: `module:Attr` of `(path, Graph) -> None`.
        weights: fp32, fp16, int8, int4: those that it can have.
        needs: What pip installs for it.
        single: Whether it takes one sample a time, of a fixed length.
    """

    suffix: str
    reader: str
    writer: str
    weights: tuple[str, ...]
    needs: str
    single: bool = False


def _row(suffix: str, name: str, weights: str, needs: str, single: bool = False, reader: str | None = None) -> Runtime:
    """`name` is the writer's module, and the reader's unless that has another name, or none."""
    module = name if reader is None else reader
    opens = f"clip_distill.runtimes.{module}:open_file" if module else ""
    return Runtime(suffix, opens, f"clip_distill.exports.writers.{name}:write", tuple(weights.split()), needs, single)


RUNTIMES = {
    "onnx": _row(".onnx", "onnx", "fp32 fp16 int8 int4", "'clip-distill[onnx]'"),
    "ort": _row(".ort", "ort", "fp32 fp16 int8", "'clip-distill[onnx]'", reader="onnx"),
    "openvino": _row(".xml", "openvino", "fp32 fp16 int8", "'clip-distill[openvino]'"),
    "executorch": _row(".pte", "executorch", "fp32 fp16", "'clip-distill[executorch]'", single=True),
    "litert": _row(".tflite", "litert", "fp32 int8", "'clip-distill[litert]'", single=True),
    "coreml": _row(".mlpackage", "coreml", "fp32 fp16 int8", "'clip-distill[coreml]'", single=True, reader=""),
}


def open_file(runtime: str, path: Path | str, device: str = "auto", weights: str = "fp32") -> Opened:
    """Load a file into its runtime.

    Args:
        runtime: A key of RUNTIMES.
        path: The file.
        device: auto, cpu, cuda.
        weights: Of the file, by which some runtimes choose how they run it.

    Raises:
        MissingPackage: The runtime is not installed.
        InvalidValue: It can't run on this machine, or not on that device.
    """
    row = RUNTIMES[runtime]
    if not row.reader:
        raise InvalidValue(f"{path}: {runtime} files run on Apple's systems alone")
    return needing(row, row.reader)(os.fspath(path), device, weights)


def require_writer(runtime: str) -> Any:
    """The function that writes a runtime's files: `(path, Graph) -> None`.

    Raises:
        MissingPackage: What it needs is not installed.
    """
    return needing(RUNTIMES[runtime], RUNTIMES[runtime].writer)


def needing(row: Runtime, target: str) -> Any:
    """What `module:Attr` names.

    Raises:
        MissingPackage: A package that its module imports is not installed.
    """
    try:
        return resolve("runtime", {}, target)
    except ImportError as error:
        hint = f"install it with: pip install {row.needs}"
        raise MissingPackage(f"{row.suffix} files need {error.name}; {hint}") from error
