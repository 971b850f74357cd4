"""One module as an ONNX file: written, made smaller, loaded by ONNX Runtime and compared, and only then named.

Shapes: B batch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.exports.target import Weights
from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.towers.spec import count_parameters

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 - the exporter needs it; found missing here, not in the middle of an export
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import convert_float_to_float16
except ImportError as error:
    raise MissingPackage(f"ONNX needs {error.name}; install it with: pip install 'clip-distill[onnx]'") from error

MIN_COSINE: dict[Weights, float] = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.95}
MAX_BYTES = 2**31 - 2**24  # of one protobuf message, less room for the graph; beyond, weights would lie in files beside
# Gather is the embedding table, most of a text student.
QUANTISED = ["MatMul", "Gemm", "Gather"]
CPU = ("CPUExecutionProvider",)
BATCH = 16  # photos of a calibration step
Feed = Sequence[NDArray[Any]]  # batches of one input


def save_graph(
    path: Path,
    module: nn.Module,
    example: Tensor,
    dynamic: Mapping[int, Any],
    names: tuple[str, str],
    weights: Weights,
    probes: Sequence[Tensor],
    calibration: Feed = (),
) -> float:
    """Write a module, run it, compare it with torch, and only then give the file its name.

    Args:
        path: The file.
        module: On the CPU; its mode is left as it was.
        example: An input [B, …].
        dynamic: Axis → `torch.export.Dim`, for those of the input that are free.
        names: Of input and output.
        weights: fp32, fp16 (inputs and outputs stay as they are) or int8: static where there is calibration, else
            dynamic.
        probes: Inputs to compare on.
        calibration: Batches that int8's ranges of activations are set by.

    Returns:
        The least cosine with torch's embeddings among the probes.

    Raises:
        InvalidValue: It can't be exported, is too large, or ONNX Runtime gives other embeddings.
    """
    size = 4 * count_parameters(module)
    if size > MAX_BYTES:
        raise InvalidValue(f"ONNX: expected less than 2 GiB of weights in one file, found {size / 2**30:.1f} GiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    training = module.training
    with _aside(path) as aside, _aside(path) as whole:
        try:
            _export(whole, module.eval(), example, dynamic, names)
            if weights == "int8":
                quantise_static(whole, aside, names[0], calibration) if calibration else quantise(whole, aside)
            else:
                (halve if weights == "fp16" else os.replace)(whole, aside)
            cosine = least_cosine(aside, module, probes)
        finally:
            module.train(training)
        if not cosine >= MIN_COSINE[weights]:
            raise InvalidValue(
                f"ONNX: onnxruntime gives other embeddings for {path.name} ({weights}): expected cosine ≥ "
                f"{MIN_COSINE[weights]} with torch, found {cosine:.4f}" + ("; use fp32" if weights != "fp32" else "")
            )
        os.replace(aside, path)
    return cosine


def open_session(path: Path | str, providers: Sequence[str] = CPU) -> onnxruntime.InferenceSession:
    """Load a file. Half-precision graphs crash at onnxruntime's last level of optimisation, so it is left out."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


@torch.inference_mode()
def least_cosine(path: Path, module: nn.Module, probes: Sequence[Tensor]) -> float:
    """Between a file's embeddings and a module's."""
    session = open_session(path)
    (source,) = session.get_inputs()
    least = 1.0
    for inputs in probes:
        found = torch.from_numpy(session.run(None, {source.name: inputs.numpy()})[0]).float()
        least = min(least, float(F.cosine_similarity(found, module(inputs).float()).min()))
    return least


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


class Batches(CalibrationDataReader):
    """Batches as onnxruntime's calibration asks for them."""

    def __init__(self, name: str, feed: Feed) -> None:
        self.name, self.left = name, iter(feed)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(({self.name: batch} for batch in self.left), None)


def quantise_static(source: Path, target: Path, name: str, calibration: Feed) -> None:
    """Weights and activations to int8, convolutions as well; ranges of activations as `calibration` shows them.

    Args:
        source: A float32 file.
        target: What to write.
        name: Of its input.
        calibration: Batches of the user's own photos.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Batches(name, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # as above
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": 99.99},
        )


def halve(source: Path, target: Path) -> None:
    """Weights and arithmetic to float16; inputs and outputs stay float32."""
    with _quiet():
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _export(path: Path, module: nn.Module, example: Tensor, dynamic: Mapping[int, Any], names: tuple[str, str]) -> None:
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example.clone(),),
                dynamo=True,
                dynamic_shapes=(dict(dynamic),),
                input_names=[names[0]],
                output_names=[names[1]],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise InvalidValue(f"ONNX: torch can't export {path.name.split('.')[1]}: {' '.join(cause[:3])}") from error
    assert program is not None
    program.save(path, external_data=False)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name beside `path`; what is left of it in the end is deleted."""
    aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


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


def as_batches(rows: NDArray[Any]) -> list[NDArray[np.generic]]:
    """Rows in calibration's batches."""
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
