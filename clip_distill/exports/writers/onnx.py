"""A tower as an ONNX file, whole or in fewer bits.

Shapes: B batch.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxscript  # noqa: F401 - the exporter needs it; found missing here, not in the middle of an export
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from clip_distill.exports.target import Graph
from clip_distill.exports.writers.static import quantise_static
from clip_distill.system.errors import InvalidValue
from clip_distill.towers.spec import count_parameters

MAX_BYTES = 2**31 - 2**24  # of one protobuf message, less room for the graph; beyond, weights would lie in files beside
# Gather is the embedding table, most of a text student.
QUANTISED = ["MatMul", "Gemm", "Gather"]
BLOCK = 32  # numbers that share a scale in four bits


def write(path: Path, graph: Graph) -> None:
    """Write a tower.

    Args:
        path: The file.
        graph: The tower, and in which weights: fp16 (inputs and outputs stay as they are), int8 (static where there is
            calibration, else dynamic), int4 (the token table, in blocks of 32; all else as int8).

    Raises:
        InvalidValue: torch can't export it, or it is too large.
    """
    if graph.weights == "fp32":
        export_program(path, graph)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "whole.onnx"
        export_program(whole, graph)
        if graph.weights == "fp16":
            halve(whole, path)
            return
        if graph.weights == "int4":
            whole = quarter_table(whole, Path(folder) / "quartered.onnx")
        if graph.calibration:
            with _quiet():
                quantise_static(whole, path, graph.names[0], graph.calibration, graph.enough)
        else:
            quantise(whole, path)
        shorten(path)


def shorten(path: Path) -> None:
    """Give all values within a graph short names: of a small int8 file the long ones are some per cent."""
    model = onnx.load(path)
    graph = model.graph
    kept = {each.name: each.name for each in (*graph.input, *graph.output)} | {"": ""}  # "": an input that is left out
    short: dict[str, str] = {}

    def name(old: str) -> str:
        return kept.get(old) or ("" if not old else short.setdefault(old, f"{len(short):x}"))

    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [name(each) for each in names]
    for tensor in graph.initializer:
        tensor.name = name(tensor.name)
    del graph.value_info[:]
    onnx.save(model, path)


def quantise(source: Path, target: Path) -> None:
    """Weights to int8, one scale per output channel; activations are scaled as they come (dynamic quantisation).

    The embedding table is quantised, too, which onnxruntime leaves alone by itself. Measured on a trained sentence
    encoder, per-channel scales kept a cosine of 0.993 where the default, one scale per matrix, kept 0.962.
    """
    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            reduce_range=True,  # seven bits: on CPUs without VNNI the sums of eight-bit products saturate
            weight_type=QuantType.QInt8,
        )


def quarter_table(source: Path, target: Path) -> Path:
    """The embedding table to four bits, a scale for each 32 numbers of a row; the file with it."""
    with _quiet():
        model = onnx.load(source)
        options = {"bits": 4, "block_size": BLOCK, "is_symmetric": True, "op_types_to_quantize": ("Gather",)}
        quantizer = MatMulNBitsQuantizer(model, **options)
        quantizer.process()
        onnx.save(quantizer.model.model, target)
    return target


def halve(source: Path, target: Path) -> None:
    """Weights and arithmetic to float16; inputs and outputs stay float32."""
    with _quiet():
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def export_program(path: Path, graph: Graph) -> None:
    """Write a tower in float32.

    Raises:
        InvalidValue: torch can't export it, or it is too large.
    """
    size = 4 * count_parameters(graph.module)
    if size > MAX_BYTES:
        raise InvalidValue(f"ONNX: expected less than 2 GiB of weights in one file, found {size / 2**30:.1f} GiB")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.module,
                (graph.example.clone(),),
                dynamo=True,
                dynamic_shapes=(dict(graph.free),),
                input_names=[graph.names[0]],
                output_names=[graph.names[1]],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise InvalidValue(f"ONNX: torch can't export this tower: {' '.join(cause[:3])}") from error
    assert program is not None
    program.save(path, external_data=False)
    model = onnx.load(path)
    for node in model.graph.node:  # where each came from in the exporter's program: a third of a small file's overhead
        del node.metadata_props[:]
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantiser's remarks, which are about their own code or advise what we decided."""
    logging.disable(logging.ERROR)  # what fails in the end raises
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
