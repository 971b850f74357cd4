"""Image towers in half precision on a CPU."""

from __future__ import annotations

import torch
from open_clip.model import _build_vision_tower
from torch import Tensor, nn

from clip_distill.towers.attention import ExactAttention, exact_attention

CFG = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}


def tower() -> nn.Module:
    torch.manual_seed(0)
    return _build_vision_tower(32, dict(CFG), False)


def gradient(module: nn.Module, images: Tensor, half: bool) -> Tensor:
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        embeddings = module(images)
    embeddings.float().square().sum().backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_the_embeddings_and_the_names_stay() -> None:
    images = torch.randn(4, 3, 32, 32)
    plain, exact = tower().eval(), exact_attention(tower()).eval()
    assert sum(isinstance(each, ExactAttention) for each in exact.modules()) == CFG["layers"]
    assert plain.state_dict().keys() == exact.state_dict().keys()
    assert torch.equal(plain(images), exact(images))


def test_half_precision_is_at_least_as_near_to_float32_as_torchs_own() -> None:
    images = torch.randn(8, 3, 32, 32)
    truth = gradient(tower(), images, half=False)
    errors = [(gradient(each, images, half=True) - truth).norm() for each in (tower(), exact_attention(tower()))]
    assert 0 < errors[1] < 1.2 * errors[0]
    assert errors[1] < 0.05 * truth.norm()


def test_a_mask_takes_the_usual_way() -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x, mask = torch.randn(2, 5, 32), torch.ones(5, 5, dtype=torch.bool).triu(1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
        exact_attention(nn.Sequential(attention))
        found = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    assert type(attention) is ExactAttention
    assert torch.equal(expected, found)
