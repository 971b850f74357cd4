"""Static int8 for ONNX: ranges of activations set by photos, and the layers that would lose most left in float32.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from clip_distill.exports.target import Feed
from clip_distill.system.talk import progress

PERCENTILE = 99.99
LAYERS = ("Conv", "Gemm", "MatMul")  # that may stay in float32
MOST_WIDE = 8
MARGIN = 0.001  # of cosine: what is measured on a part is to hold for all
TRIED = 3  # batches of the calibration that layers are tried on


class Batches(CalibrationDataReader):
    """Batches as onnxruntime's calibration asks for them."""

    def __init__(self, name: str, feed: Feed) -> None:
        self.name, self.left = name, iter(feed)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(({self.name: batch} for batch in self.left), None)


@dataclass
class Search:
    """A model, its ranges, and how near it stays with some layers in float32.

    Args:
        prepared: A float32 file, shapes inferred.
        target: What to write.
        ranges: Of each tensor.
        feed: Some batches to compare on.
        expected: What the float32 file makes of them.
    """

    prepared: Path
    target: Path
    ranges: Any
    feed: Feed
    expected: NDArray[np.float32]

    def cosine(self, wide: Sequence[str]) -> float:
        """Write the file with these layers in float32; the mean cosine to float32's embeddings."""
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(self.prepared),
            True,  # a scale for each channel
            True,  # seven bits: on CPUs without VNNI the sums of eight-bit products saturate
            QuantType.QInt8,
            QuantType.QUInt8,
            self.ranges,
            [],
            list(wide),
            operators(),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(self.target), False)
        found = run(self.target, self.feed)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(self.expected, axis=1)
        return float(((found * self.expected).sum(1) / lengths).mean())


def operators() -> list[str]:
    """Kinds of nodes that onnxruntime can quantise."""
    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def run(path: Path, feed: Feed) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: batch})[0] for batch in feed])


def quantise_static(source: Path, target: Path, name: str, calibration: Feed, enough: float) -> list[str]:
    """Weights and activations to int8, convolutions as well.

    Args:
        source: A float32 file.
        target: What to write.
        name: Of its input.
        calibration: Batches of the user's own photos; their 99.99 percentiles are the ranges.
        enough: Mean cosine to float32's embeddings. Where it is not reached, layers are left in float32, those first
            that lose most, until it is.

    Returns:
        The layers in float32.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        calibrator = create_calibrator(
            prepared,
            operators(),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"percentile": PERCENTILE},
        )
        calibrator.collect_data(Batches(name, calibration))
        feed = calibration[:TRIED]
        search = Search(prepared, target, calibrator.compute_data(), feed, run(prepared, feed))
        return leave_wide(search.cosine, weights_of(onnx.load(prepared)), enough + MARGIN)


def weights_of(model: onnx.ModelProto) -> dict[str, int]:
    """How many numbers each layer has."""
    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    return {n.name: sum(sizes.get(i, 0) for i in n.input) for n in model.graph.node if n.op_type in LAYERS}


def leave_wide(cosine: Callable[[Sequence[str]], float], layers: Mapping[str, int], enough: float) -> list[str]:
    """Which layers to leave in float32: each is tried alone, then those that give most for their size are taken.

    Args:
        cosine: Of layers in float32, how near the rest stays; the last call is of those that are returned.
        layers: To choose from → how many numbers each has.
        enough: To reach; what is best of MOST_WIDE layers where it can't be.
    """
    none = cosine([])
    if none >= enough:
        return []
    bar = progress(layers, desc="int8, layers that lose most", unit=" layers")
    gains = {layer: cosine([layer]) - none for layer in bar}
    wide: list[str] = []
    for layer in sorted(gains, key=lambda each: -gains[each] / max(1, layers[each]))[:MOST_WIDE]:
        wide.append(layer)
        if cosine(wide) >= enough:
            break
    return wide
