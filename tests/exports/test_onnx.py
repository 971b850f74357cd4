# ruff: noqa: E402  # what needs onnx is imported once it is known to be there
"""ONNX files, read back by onnxruntime at shapes that they were not traced with."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")

from clip_distill.cli import main as cli
from clip_distill.exports.program import describe, export_tower
from clip_distill.exports.save import compare
from clip_distill.exports.writers.onnx import quantise
from clip_distill.runtimes import open_file
from clip_distill.system.files import read_json
from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec, load_tower

CAPTIONS = ["a red circle", "a blue square on yellow, seen from far away", "a dog", "there is a bar", "a frame"] * 2


def run(path: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    return torch.from_numpy(session.run([target.name], {source.name: inputs.numpy()})[0])


def tokens_of(spec: TowerSpec, width: int | None) -> Tensor:
    tokenizer = TokenizerSpec(**spec.tokenizer)
    return tokenize(tokenizer, CAPTIONS).pad(tokenizer.pad_id, width)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_image_file_embeds_batches_of_any_size(batch: int, exported: Path, tiny_runs: dict[str, Path]) -> None:
    pixels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
    _, module = load_tower(tiny_runs["image"])
    with torch.inference_mode():
        torch.testing.assert_close(run(exported / "image.onnx", pixels), module(pixels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [77, 30, None])
def test_the_text_file_embeds_captions_cut_to_any_length(
    width: int | None, exported: Path, tiny_runs: dict[str, Path]
) -> None:
    spec, module = load_tower(tiny_runs["text"])
    tokens = tokens_of(spec, width)
    assert len(tokens) > 8  # from where on torch's own tower takes another way than the traced one
    with torch.inference_mode():
        torch.testing.assert_close(run(exported / "text.onnx", tokens), module(tokens), rtol=1e-3, atol=1e-4)
    assert torch.equal(
        run(exported / "text.onnx", tokens[:1]).argmax(), run(exported / "text.onnx", tokens)[0].argmax()
    )


def test_the_json_says_how_the_files_are_fed(exported: Path, tiny_runs: dict[str, Path]) -> None:
    info = read_json(exported / "towers.json")
    for tower in ("image", "text"):
        spec, _ = load_tower(tiny_runs[tower])
        session = onnxruntime.InferenceSession(exported / info[tower]["file"], providers=["CPUExecutionProvider"])
        for kind, (value,) in (("input", session.get_inputs()), ("output", session.get_outputs())):
            assert (value.name, value.shape) == (info[tower][kind]["name"], info[tower][kind]["shape"])
        assert info[tower]["least_cosine_to_torch"] > 0.9999
        assert info["teacher"]["embed_dim"] == info[tower]["output"]["shape"][1] == spec.embed_dim
    assert load_tokenizer(TokenizerSpec(**info["text"]["tokenizer"]))(["a dog"]).shape == (1, 77)
    assert info["image"]["preprocess"]["std"] == [0.25] * 3
    assert info["teacher"]["logit_scale"] > 1


def test_int8_is_a_fraction_of_the_size_and_nearly_the_same(
    exported: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    spec, module = load_tower(tiny_runs["text"])
    quantise(exported / "text.onnx", tmp_path / "text.onnx")
    assert (tmp_path / "text.onnx").stat().st_size < 0.35 * (exported / "text.onnx").stat().st_size
    tokens = tokens_of(spec, None)
    with torch.inference_mode():
        cosine = F.cosine_similarity(run(tmp_path / "text.onnx", tokens), module(tokens))
    assert 0.95 < float(cosine.min()) < 0.9999999
    weights = {each.name: each for each in onnx.load(tmp_path / "text.onnx").graph.initializer}
    (table,) = (each for each in weights.values() if list(each.dims) == [49408, 16])
    assert table.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    scales = [np.prod(each.dims) for name, each in weights.items() if name.endswith("_scale")]
    assert max(scales) > 1  # one per channel, not one per matrix


def test_other_embeddings_are_found_and_leave_no_file(
    exported: Path, tiny_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, module = load_tower(tiny_runs["image"])
    probes = [torch.randn(2, 3, 32, 32)]
    opened = open_file("onnx", exported / "image.onnx")
    assert compare(opened, module, probes).least > 0.9999
    assert compare(opened, spec.build().eval(), probes).mean < 0.9
    unlike = dataclasses.replace(spec, preprocess=spec.preprocess | {"size": 48})  # its tower takes 32 only
    with pytest.raises(ValueError, match="torch can't export this tower"):
        export_tower(tmp_path / "image.onnx", unlike, spec.build())
    monkeypatch.setattr("clip_distill.exports.save.MEAN", {"int8": 0.9999999})
    with pytest.raises(ValueError, match=r"image.onnx \(int8\): expected a mean cosine ≥ 0.9999999 with the student"):
        export_tower(tmp_path / "image.onnx", spec, module, "int8")
    assert list(tmp_path.iterdir()) == []


def test_a_text_tower_that_sees_padding_is_given_all_of_it(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    causal, _ = load_tower(tiny_runs["text"])
    spec = dataclasses.replace(causal, cfg=causal.cfg | {"no_causal_mask": True, "pool_type": "last"})
    module = spec.build()  # in training mode, as `fit` has it
    assert export_tower(tmp_path / "text.onnx", spec, module).least > 0.9999
    assert module.training
    (source,) = onnxruntime.InferenceSession(tmp_path / "text.onnx").get_inputs()
    assert source.shape == describe(spec)["input"]["shape"] == ["batch", "length"]
    whole, cut = tokens_of(spec, 77), tokens_of(spec, None)
    with torch.inference_mode():
        expected = module.eval()(whole)
    for tokens in (whole, cut):
        torch.testing.assert_close(run(tmp_path / "text.onnx", tokens), expected, rtol=1e-3, atol=1e-4)


def test_an_export_is_replaced_only_when_asked(exported: Path, tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    exported = Path(shutil.copytree(exported, tmp_path / "exported"))  # others measure the first one
    argv = ["export", "--image_student", str(tiny_runs["image"]), "--text_student", str(tiny_runs["text"])]
    argv += ["--to", "onnx", "--weights", "int8", "--out", str(exported)]
    with pytest.raises(SystemExit, match="--overwrite true replaces"):
        cli.main(argv)
    before = (exported / "text.onnx").stat().st_size
    cli.main([*argv, "--overwrite", "true"])
    assert read_json(exported / "towers.json")["weights"] == "int8"
    assert (exported / "text.onnx").stat().st_size < 0.35 * before
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["README.md", "export.json", "image.onnx", "merges.txt.gz", "text.onnx", "towers.json"]
