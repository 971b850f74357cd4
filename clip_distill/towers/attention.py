"""Attention of image towers on a CPU in half precision: torch's fused kernel, but in float32.

Shapes: B images, L patches and a class token, H heads, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExactAttention(nn.MultiheadAttention):
    """torch's attention, whose scores and sums stay in float32 under a CPU's autocast.

    On a CPU the fused kernel's backward pass takes several times as long in bfloat16 as in float32, where it is no
    longer the matrix products that cost; so only the projections before and after it are left to autocast.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, L, W] → [B, L, W] of a tower's self-attention; all else goes the usual way."""
        whole = query is key is value and key_padding_mask is None and attn_mask is None
        if not whole or need_weights or not _helps(query):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias).float()
        q, k, v = packed.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # [B, H, L, W/H]
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def _helps(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def exact_attention(tower: nn.Module) -> nn.Module:
    """Let open_clip's vision transformers attend so; other towers are returned as they are."""
    for module in tower.modules():
        if type(module) is nn.MultiheadAttention and module.batch_first and module.in_proj_weight is not None:
            module.__class__ = ExactAttention  # same parameters, state dict and, in float32, embeddings
    return tower
