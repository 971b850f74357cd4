"""open_clip teachers, from small folders with random weights, against open_clip's own way of using them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.coca_model import CoCa
from open_clip.model import CustomTextCLIP
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from clip_distill.store.manifest import flatten
from clip_distill.system.hub import reachable
from clip_distill.teachers import load_teacher
from clip_distill.teachers.open_clip import read_config, split_name
from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.spec import TokenizerSpec, identity
from clip_distill.towers.spec import TOWERS

TEXTS = ["a dog", "Two dogs &amp; a cat on the grass, in the snow", "", "the " * 100]
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SIGLIP_TEXT = TEXT | {
    "context_length": 16, "vocab_size": 50, "hf_tokenizer_name": "nobody/nothing", "no_causal_mask": True,
    "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}, "pad_id": 1,
}  # fmt: skip


def save_folder(folder: Path, cls: type[torch.nn.Module] = CustomTextCLIP, seed: int = 0, **cfg: Any) -> str:
    torch.manual_seed(seed)
    full = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True} | cfg
    model = cls(**{key: value for key, value in full.items() if key != "custom_text"})
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": full, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


def check_as_open_clip_embeds(name: str) -> None:
    """Both towers give what the whole model gives, on the tokenizer's own tokens."""
    model = open_clip.create_model(name).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    for tower in TOWERS:
        spec, module = load_teacher(name, tower)
        with torch.no_grad():
            expected = (
                model.encode_image(images, normalize=False)
                if tower == "image"
                else model.encode_text(tokens, normalize=False)
            )
            inputs = images if tower == "image" else padded(spec.tokenizer, spec.causal)
            assert torch.allclose(module(inputs), expected, atol=1e-5)
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in model.parameters())
        assert spec.embed_dim == expected.shape[1] == spec.teacher["embed_dim"]
        assert spec.teacher["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
        assert json.loads(json.dumps(spec.teacher)) == spec.teacher
        spec.build().load_state_dict(module.state_dict())


def padded(tokenizer: dict[str, Any], causal: bool) -> torch.Tensor:
    """TEXTS as `embed` pads them: a causal tower's to the longest caption."""
    spec = TokenizerSpec(**json.loads(json.dumps(tokenizer)))
    return tokenize(spec, TEXTS).pad(spec.pad_id, None if causal else spec.context_length)


def test_both_forms_of_open_clip_folders(tiny_teacher: str, tiny_plain_teacher: str) -> None:
    check_as_open_clip_embeds(tiny_teacher)
    check_as_open_clip_embeds(tiny_plain_teacher)


@pytest.mark.parametrize("width", [256, 512, 768])
def test_widths(tmp_path: Path, width: int) -> None:
    check_as_open_clip_embeds(save_folder(tmp_path, embed_dim=width))


def test_padding_of_a_causal_tower_may_be_cut(tiny_teacher: str) -> None:
    spec, module = load_teacher(tiny_teacher, "text")
    tokens = tokenize(TokenizerSpec(**spec.tokenizer), TEXTS[:2])
    assert spec.causal
    assert torch.allclose(module(tokens.pad(0)), module(tokens.pad(0, 77)), atol=1e-5)


def test_siglip_text_towers_are_padded_in_full(tmp_path: Path, make_tokenizer: Callable[..., None]) -> None:
    name = save_folder(tmp_path, text_cfg=SIGLIP_TEXT)
    make_tokenizer(tmp_path, 16)
    check_as_open_clip_embeds(name)
    spec, module = load_teacher(name, "text")
    assert not spec.causal
    assert (spec.tokenizer["pad_id"], spec.tokenizer["context_length"]) == (1, 16)
    full = padded(spec.tokenizer, causal=False)[:1]
    assert not torch.allclose(module(full), module(full[:, :3]), atol=1e-3)  # so the distinction matters


def test_coca_towers_return_embeddings_alone(tmp_path: Path) -> None:
    cfg: dict[str, Any] = {
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "width": 32, "heads": 2, "layers": 1, "vocab_size": 49408},
    }
    name = save_folder(tmp_path, CoCa, **cfg)
    check_as_open_clip_embeds(name)
    assert not load_teacher(name, "text")[0].causal


def test_a_copied_folder_is_the_same_teacher(tmp_path: Path, make_tokenizer: Callable[..., None]) -> None:
    name = save_folder(tmp_path / "here", text_cfg=SIGLIP_TEXT)
    make_tokenizer(tmp_path / "here", 16)
    here = load_teacher(name, "text")[0].teacher
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = load_teacher(f"local-dir:{tmp_path / 'there'}", "text")[0].teacher
    assert here["weights_sha256"] == there["weights_sha256"]
    assert flatten(identity(here["tokenizer"])) == flatten(identity(there["tokenizer"]))

    make_tokenizer(tmp_path / "there", 16, order=-1)
    changed = load_teacher(f"local-dir:{tmp_path / 'there'}", "text")[0].teacher
    assert identity(changed["tokenizer"]) != identity(here["tokenizer"])
    with pytest.raises(ValueError, match="has changed: expected content"):
        load_tokenizer(TokenizerSpec(**there["tokenizer"]))
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(ValueError, match="If the folder has moved"):
        load_tokenizer(TokenizerSpec(**there["tokenizer"]))


def test_other_weights_are_another_teacher(tmp_path: Path) -> None:
    hashes = {
        load_teacher(save_folder(tmp_path / str(s), seed=s), "image")[0].teacher["weights_sha256"] for s in (0, 1)
    }
    assert len(hashes) == 2


def test_openai_names_and_their_activation(tmp_path: Path) -> None:
    assert split_name("ViT-B/32") == split_name("ViT-B-32/openai") == ("ViT-B-32", "openai")
    assert split_name("ViT-B-32/folder/file.pt") == ("ViT-B-32", "folder/file.pt")
    assert read_config("ViT-B-32", "openai")["quick_gelu"] is True
    assert read_config("ViT-B-32", "laion2b_s34b_b79k")["quick_gelu"] is False
    spec, module = load_teacher(save_folder(tmp_path, quick_gelu=True), "image")
    assert spec.quick_gelu
    assert any(isinstance(part, QuickGELU) for part in module.modules())


def test_an_unreachable_hub_is_one_quick_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port that nothing listens on
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    with pytest.raises(ValueError, match="could not load it: .*nobody/nothing"):
        load_teacher("hf-hub:nobody/nothing", "text")
    assert time.monotonic() - started < 10
    assert "Retrying" not in caplog.text
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_reachable() -> None:
    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        Thread(target=server.handle_request, daemon=True).start()
        assert reachable(f"http://127.0.0.1:{server.server_port}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "expected MODEL/WEIGHTS.*known weights of ViT-B-32: openai"),
        ("ViT-B-33/openai", "no open_clip model has this name"),
        ("ViT-B-32/nope", "'nope' is not a known tag"),
        ("local-dir:nowhere", "expected an open_clip folder with open_clip_config.json"),
    ],
)
def test_unknown_names(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        load_teacher(name, "text")


def test_broken_folders(tmp_path: Path) -> None:
    name = save_folder(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="open_clip could not load it"):
        load_teacher(name, "text")
    weights.unlink()
    with pytest.raises(ValueError, match="weights .* could not be loaded"):
        load_teacher(name, "text")
    config = tmp_path / "open_clip_config.json"
    config.write_text('{"model_cfg": {"embed_dim": 24}}')
    with pytest.raises(ValueError, match="open_clip could not load it: 'vision_cfg'"):
        load_teacher(name, "text")
