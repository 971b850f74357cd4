"""Towers as ONNX files, in float32 or with int8 weights, for onnxruntime: no torch where they run.

Shapes: B images or captions, L tokens, C context length, S image side, D embedding.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_distill.exports import ONNX_FILE
from clip_distill.exports.open_clip import PROBES, Loaded
from clip_distill.pixels.views import normalise
from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.files import write_json
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import Tower, TowerSpec, count_parameters

try:
    import onnx  # noqa: F401 - onnxscript and the quantiser need it; found missing here, not in the middle of an export
    import onnxruntime
    import onnxscript  # noqa: F401
    from onnxruntime.quantization import QuantType, quantize_dynamic
except ImportError as error:
    raise MissingPackage(f"ONNX needs {error.name}; install it with: pip install 'clip-distill[onnx]'") from error

Weights = Literal["fp32", "int8"]
MIN_COSINE: dict[Weights, float] = {"fp32": 0.9999, "int8": 0.95}
MAX_BYTES = 2**31 - 2**24  # of one protobuf message, less room for the graph; beyond, weights would lie in files beside
# Gather is the embedding table, most of a text student. Convolutions stay in float32.
QUANTISED = ["MatMul", "Gemm", "Gather"]
INPUT_NAMES: dict[Tower, str] = {"image": "pixels", "text": "tokens"}


def write(folder: Path, image: Loaded, text: Loaded, teacher: dict[str, Any], weights: Weights = "fp32") -> None:
    """Write `image.onnx`, `text.onnx` and `onnx.json`, which says how each is fed; each is run and compared.

    Args:
        folder: Empty folder.
        image: Spec and module of the image tower, on the CPU.
        text: Spec and module of the text tower, on the CPU.
        teacher: Record of the teacher, whose `logit_scale` (and `logit_bias`, for SigLIP) is written.
        weights: int8 makes files a quarter as large; see `quantise`.

    Raises:
        ValueError: A tower can't be exported, or onnxruntime gives other embeddings.
    """
    keys = ("name", "weights_sha256", "embed_dim", "logit_scale", "logit_bias")
    info = {key: teacher[key] for key in keys if key in teacher}
    described: dict[str, Any] = {"weights": weights, "teacher": info}
    for spec, module in (image, text):
        path = folder / f"{spec.tower}.onnx"
        cosine = export_tower(path, spec, module, weights)
        made = {"file": path.name, "parameters": count_parameters(module), "min_cosine_to_torch": round(cosine, 6)}
        described[spec.tower] = describe(spec) | made
    write_json(folder / ONNX_FILE, described)


def write_int8(folder: Path, image: Loaded, text: Loaded, teacher: dict[str, Any]) -> None:
    """`write` with int8 weights."""
    write(folder, image, text, teacher, "int8")


def describe(spec: TowerSpec) -> dict[str, Any]:
    """What a program needs in order to feed a tower's file, as plain data."""
    shape: tuple[int | str, ...]
    if spec.tower == "image":
        shape = image_shape(spec)
        how = {"preprocess": spec.preprocess}
    else:
        shape = ("length" if spec.causal else spec.tokenizer["context_length"],)
        how = {"tokenizer": spec.tokenizer}
    return {
        "input": {"name": INPUT_NAMES[spec.tower], "shape": ["batch", *shape]},
        "output": {"name": output_name(spec), "shape": ["batch", spec.embed_dim]},
        **how,
    }


def image_shape(spec: TowerSpec) -> tuple[int, ...]:
    """(3, S, S) of an image tower's input."""
    return (3, *np.broadcast_to(spec.preprocess["size"], 2).tolist())


def output_name(spec: TowerSpec) -> str:
    return f"{spec.tower}_features"  # with `embedding`, a text tower's graph would have two values of one name


def export_tower(path: Path, spec: TowerSpec, module: nn.Module, weights: Weights = "fp32") -> float:
    """Write one tower, run it, compare it with torch, and only then give the file its name.

    Args:
        path: The file. Its input is `pixels` float32 [B, 3, S, S] or `tokens` int64 [B, L], its output
            `image_features` or `text_features` float32 [B, D], not normalised. B is free, and for causal text towers
            so is L, from 2 to C.
        spec: Of the tower.
        module: The tower, on the CPU; its mode is left as it was.
        weights: fp32, or int8 (`quantise`).

    Returns:
        The least cosine with torch's embeddings among the probes.

    Raises:
        ValueError: The tower can't be exported, is too large, or onnxruntime gives other embeddings.
    """
    size = 4 * count_parameters(module)
    if size > MAX_BYTES:
        raise InvalidValue(f"ONNX: expected less than 2 GiB of weights in one file, found {size / 2**30:.1f} GiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    training = module.training
    with _aside(path) as aside, _aside(path) as whole:
        try:
            _export(whole, spec, module.eval())
            (quantise if weights == "int8" else os.replace)(whole, aside)
            cosine = verify(aside, spec, module, weights)
        finally:
            module.train(training)
        os.replace(aside, path)
    return cosine


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


@torch.inference_mode()
def verify(path: Path, spec: TowerSpec, module: nn.Module, weights: Weights) -> float:
    """Least cosine between a file's embeddings and a module's, over probes of another shape than it was traced with.

    Raises:
        ValueError: It is below `MIN_COSINE`.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    least = 1.0
    for inputs in probes(spec):
        found = torch.from_numpy(session.run([output_name(spec)], {INPUT_NAMES[spec.tower]: inputs.numpy()})[0])
        least = min(least, float(F.cosine_similarity(found, module(inputs).float()).min()))
    if not least >= MIN_COSINE[weights]:
        raise InvalidValue(
            f"ONNX: onnxruntime gives other embeddings for the {spec.tower} tower ({weights}): expected cosine ≥ "
            f"{MIN_COSINE[weights]} with torch, found {least:.4f}" + ("; use fp32" if weights == "int8" else "")
        )
    return least


def probes(spec: TowerSpec) -> Iterator[Tensor]:
    """Batches to compare on: noise as photos, or captions at the context length and, if they may be, cut."""
    if spec.tower == "image":
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (3, *image_shape(spec)), dtype=torch.uint8, generator=generator)
        yield normalise(noise, spec.preprocess).contiguous()
        return
    tokenizer = TokenizerSpec(**spec.tokenizer)
    tokens = tokenize(tokenizer, PROBES)
    yield tokens.pad(tokenizer.pad_id, tokenizer.context_length)
    if spec.causal:
        yield tokenize(tokenizer, PROBES[:1]).pad(tokenizer.pad_id)


def _export(path: Path, spec: TowerSpec, module: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    inputs = next(probes(spec))[:2]
    dynamic: dict[int, Any] = {0: batch}
    if spec.tower == "text" and spec.causal:
        inputs = inputs[:, : max(2, inputs.shape[1] // 2)]
        dynamic[1] = torch.export.Dim("length", min=2, max=spec.tokenizer["context_length"])
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (inputs.clone(),),
                dynamo=True,
                dynamic_shapes=(dynamic,),
                input_names=[INPUT_NAMES[spec.tower]],
                output_names=[output_name(spec)],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise InvalidValue(f"ONNX: torch can't export this {spec.tower} tower: {' '.join(cause[:3])}") from error
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
