"""LiteRT, that was TensorFlow Lite."""

from __future__ import annotations

from typing import Any

from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from clip_distill.runtimes import Opened
from clip_distill.runtimes.alone import one_by_one


def open_file(path: str, device: str = "auto", weights: str = "fp32") -> Opened:
    """Load a file."""
    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    source, target = (each[0]["index"] for each in (interpreter.get_input_details(), interpreter.get_output_details()))

    def run(row: NDArray[Any]) -> Any:
        interpreter.set_tensor(source, row)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return one_by_one(run, device)
