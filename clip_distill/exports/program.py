"""Both towers as the files of a program, and towers.json, which says how they are fed.

Shapes: B images or captions, L tokens, C context length, S image side, D embedding.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_distill.exports import TOWERS_FILE
from clip_distill.exports.graph import ImageGraph, Output, TextGraph, fed_length, fed_preprocess, sides
from clip_distill.exports.open_clip import PROBES
from clip_distill.exports.save import FellShort, Fidelity, save_graph
from clip_distill.exports.target import Given, Graph, Photos, Pixels, Target, Weights
from clip_distill.exports.targets.onnx import ONNX
from clip_distill.pixels.photos import BadImage, Photo, read_bytes_of
from clip_distill.pixels.plain import plain_view, to_array, to_input
from clip_distill.runtimes import RUNTIMES
from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import write_json
from clip_distill.system.talk import progress
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.light import save_merges
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec, count_parameters

MOST_CAPTIONS = 256  # of the user's, compared on
NOISE = 3  # photos of noise, compared on where there are no others
BATCH = 16  # photos of a calibration step


def write(target: Target, folder: Path, given: Given) -> list[str]:
    """Write both towers for a program, with what else it reads, and towers.json; each file is run and compared.

    Args:
        target: The program's record.
        folder: Empty folder.
        given: What is exported.

    Returns:
        What fell short, a line each; a tower's file that did is not there.

    Raises:
        FellShort: Both towers' files did.
        InvalidValue: A tower doesn't fit the program, or can't be exported.
    """
    require_fit(target, given)
    keys = ("name", "weights_sha256", "embed_dim", "logit_scale", "logit_bias")
    info = {key: given.teacher[key] for key in keys if key in given.teacher}
    described: dict[str, Any] = {
        "target": target.name,
        "runtime": target.runtime,
        "weights": given.weights,
        "teacher": info,
    }
    short = []
    for spec, module in (given.image, given.text):
        file = target.place(getattr(target, spec.tower).file, given.weights)
        try:
            found = export_tower(folder / file, spec, module, given.weights, target, given)
        except FellShort as error:
            short.append(str(error))
            continue
        cosines = {f"{kind}_cosine_to_torch": None if c is None else round(c, 6) for kind, c in vars(found).items()}
        made = {"file": file, "parameters": count_parameters(module), **cosines}
        described[spec.tower] = describe(spec, target) | made
    if len(short) == 2:
        raise FellShort("; ".join(short))
    target.beside(folder, given)
    if given.text[0].tokenizer["source"] in ("clip", "clip-pruned"):
        save_merges(folder)
    write_json(folder / TOWERS_FILE, described)
    return short


def require_fit(target: Target, given: Given) -> None:
    """A program may know only some widths, and only tokenizers that it can run.

    Raises:
        InvalidValue: This student has others.
    """
    dim, source = given.text[0].embed_dim, given.text[0].tokenizer["source"]
    if not target.width(dim):
        raise InvalidValue(f"--to {target.name}: expected at most {max(target.widths)} numbers, found {dim}")
    if target.tokenizers and (source == "clip-pruned" or not source.startswith(target.tokenizers)):
        hint = (
            "Train the text student in its teacher's own tokens: --preset balanced does, or --student.vocabulary full "
            "with --student.options.embedding_rank 32"
            if source == "clip-pruned"
            else "Targets that read any tokenizer.json: --to fastembed, transformers.js"
        )
        raise InvalidValue(
            f"--to {target.name}: expected a text tower with one of the tokenizers {', '.join(target.tokenizers)}, "
            f"which the program can run, found {source!r}. {hint}"
        )


def describe(spec: TowerSpec, target: Target = ONNX) -> dict[str, Any]:
    """What a program needs in order to feed a tower's file, as plain data."""
    width = target.width(spec.embed_dim)
    shape: tuple[int | str, ...]
    kind: dict[str, str]
    if spec.tower == "image":
        fed = fed_preprocess(spec, target.image)
        high, wide = sides(fed)
        shape = (3, high, wide) if target.image.layout == "NCHW" else (high, wide, 3)
        kind = {"dtype": target.image.dtype, "layout": target.image.layout}
        how = {"preprocess": fed}
    else:
        length = fed_length(spec, target.text)
        shape, kind = (length or "length",), {"dtype": target.text.dtype}
        how = {"tokenizer": spec.tokenizer | ({"context_length": length} if length else {})}
    file = target.image if spec.tower == "image" else target.text
    return {
        "input": {"name": file.input, "shape": ["batch", *shape], **kind},
        "output": {"name": file.output, "shape": ["batch", width]},
        **how,
    }


def export_tower(
    path: Path,
    spec: TowerSpec,
    module: nn.Module,
    weights: Weights = "fp32",
    target: Target = ONNX,
    given: Given | None = None,
) -> Fidelity:
    """Write one tower as a program calls it, run it, compare it with torch, and only then give the file its name.

    Args:
        path: The file.
        spec: Of the tower.
        module: The tower, on the CPU; its mode is left as it was.
        weights: fp32, fp16, int8 or int4.
        target: The program. By default `pixels` float32 [B, 3, S, S] or `tokens` int64 [B, L] go in,
            `image_features` or `text_features` float32 [B, D], not normalised, come out; B, and L from 2 to C,
            are free.
        given: Whose photos set int8's ranges, and whose photos and captions are compared on.

    Raises:
        FellShort: The runtime gives other embeddings.
        InvalidValue: The tower can't be exported, or is too large.
    """
    output = Output(spec.embed_dim, target.width(spec.embed_dim), target.unit)
    single = RUNTIMES[target.runtime].single
    free = {} if single else {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    calibration: list[Any] = []
    if spec.tower == "image":
        graph: nn.Module = ImageGraph(spec, module, target.image, output)
        if given is not None and given.photos:
            calibration = as_batches(fed_photos(spec, target, render(spec, target, given.photos)))
        probes = [torch.from_numpy(b) for b in calibration or [fed_photos(spec, target, noise(spec, target))]]
        names, example = (target.image.input, target.image.output), probes[0][:2]
    else:
        graph = TextGraph(spec, module, target.text, output)
        probes = text_probes(spec, target, given.captions if given is not None else ())
        names, example = (target.text.input, target.text.output), probes[0][:2]
        if fed_length(spec, target.text) is None:
            example = example[:, : max(2, example.shape[1] // 2)]
            free[1] = torch.export.Dim("length", min=2, max=spec.tokenizer["context_length"])
    graph.train(module.training)
    made = Graph(graph, example, free, names, weights, calibration)
    return save_graph(path, made, target.runtime, probes, given.min_cosine if given is not None else None)


def as_batches(rows: NDArray[Any]) -> list[NDArray[Any]]:
    """Rows in calibration's batches."""
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def fed_photos(spec: TowerSpec, target: Target, photos: Sequence[Pixels]) -> NDArray[Any]:
    """Photos as the program feeds them, [B, …] of its dtype and layout."""
    fed = fed_preprocess(spec, target.image)
    if target.image.dtype == "uint8":
        rows: Any = np.stack(photos)
        return rows if target.image.layout == "NHWC" else np.ascontiguousarray(rows.transpose(0, 3, 1, 2))
    floats = to_input(photos, fed)
    return floats if target.image.layout == "NCHW" else np.ascontiguousarray(floats.transpose(0, 2, 3, 1))


def render(spec: TowerSpec, target: Target, photos: Photos) -> list[Pixels]:
    """Photos as the program resizes and crops them; those that can't be read are left out.

    Raises:
        InvalidValue: None can be read.
    """
    view = plain_view(fed_preprocess(spec, target.image))
    pixels = []
    for photo in progress(photos, desc="calibration", unit=" photos"):
        with contextlib.suppress(BadImage):
            pixels.append(to_array(view(Photo(read_bytes_of(photo["path"], photo["offset"], photo["size"])))))
    if not pixels:
        raise InvalidValue(f"--calibrate: expected photos that can be read, found none among {len(photos)}")
    return pixels


def noise(spec: TowerSpec, target: Target) -> list[Pixels]:
    """Photos of noise, of the program's size."""
    high, wide = sides(fed_preprocess(spec, target.image))
    return list(np.random.default_rng(0).integers(0, 256, (NOISE, high, wide, 3), dtype=np.uint8))


def text_probes(spec: TowerSpec, target: Target, captions: Sequence[str]) -> list[Tensor]:
    """Made-up and the user's captions as the program feeds them, and, where the length is free, one by itself."""
    length = fed_length(spec, target.text)
    own = TokenizerSpec(**spec.tokenizer)
    tokenizer = dataclasses.replace(own, context_length=length or own.context_length)
    kind = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}[target.text.dtype]
    tokens = tokenize(tokenizer, [*PROBES, *captions[:MOST_CAPTIONS]])
    probes = [tokens.pad(tokenizer.pad_id, tokenizer.context_length)]
    if length is None:
        probes.append(tokenize(tokenizer, PROBES[:1]).pad(tokenizer.pad_id))
    return [probe.to(kind) for probe in probes]
