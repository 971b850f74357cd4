"""A causal text tower that computes only what its embedding needs; open_clip's parameters, names and numbers.

What a causal tower knows at a token depends on the tokens up to it alone. Therefore

- what follows a caption's end is not computed, nor is the last block anywhere but at the end;
- captions that begin alike ("a man in a …") share what they begin with: each distinct prefix of a batch is one row
  of the linear layers, which are nearly all of the work. Their gradients are sums over the captions, as before.

Shapes: B captions, L tokens of the longest, R distinct captions, P distinct prefixes, H heads, W width, D embedding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SHARE_FROM = 8  # captions in a batch; below, finding what they share costs more than it saves


class Prefixes(NamedTuple):
    """The distinct prefixes of a batch of captions.

    Args:
        tokens: [P] last token of each prefix.
        positions: [P] its place in the caption.
        places: [R, L] which prefix is at each place of each caption; None where each place is one of its own.
        firsts: [P] the first place, of R · L, that has this prefix; None likewise.
        ends: [R] place of each caption's end, up to L - 1.
        captions: [B] which of the R each caption is; None where R is B.
    """

    tokens: Tensor
    positions: Tensor
    places: Tensor | None
    firsts: Tensor | None
    ends: Tensor
    captions: Tensor | None

    def spread(self, rows: Tensor) -> Tensor:
        """[P, …] → [R, L, …]"""
        R = self.ends.shape[0]  # len() would fix the size of an exported program
        if self.places is None:
            return rows.unflatten(0, (R, rows.shape[0] // R))
        return rows.index_select(0, self.places.flatten()).unflatten(0, self.places.shape)

    def gather(self, grid: Tensor) -> Tensor:
        """[R, L, …] → [P, …], the inverse of `spread`."""
        flat = grid.flatten(0, 1)
        return flat if self.firsts is None else flat.index_select(0, self.firsts)

    def at_ends(self, rows: Tensor) -> Tensor:
        """[P, …] → [R, …]"""
        R = self.ends.shape[0]  # len() would fix the size of an exported program
        places = torch.arange(rows.shape[0], device=rows.device).view(R, -1) if self.places is None else self.places
        return rows.index_select(0, places.gather(1, self.ends[:, None]).squeeze(1))


def every_place(text: Tensor, ends: Tensor) -> Prefixes:
    """Nothing shared: P is R · L. Shapes alone decide the sizes, so that this can be compiled and exported."""
    positions = torch.arange(text.shape[1], device=text.device).expand_as(text)
    return Prefixes(text.flatten(), positions.flatten(), None, None, ends, None)


def shared_prefixes(text: Tensor, ends: Tensor) -> Prefixes:
    """Each distinct prefix once, up to the captions' ends: sorted captions share theirs with the one before.

    Args:
        text: [B, L] tokens.
        ends: [B] place of each caption's end.
    """
    positions = torch.arange(text.shape[1], device=text.device)
    unique, captions = text.where(positions <= ends[:, None], -1).unique(dim=0, return_inverse=True)
    R, L = unique.shape
    ends = ends.new_empty(R).scatter_(0, captions, ends)
    fresh = torch.ones_like(unique, dtype=torch.bool)
    fresh[1:] = (unique[1:] != unique[:-1]).cumsum(1) > 0
    fresh &= positions <= ends[:, None]
    numbers = (fresh.flatten().cumsum(0) - 1).view(R, L)
    places = torch.where(fresh, numbers, 0).cummax(0).values  # what is not fresh here came last in a caption above
    firsts = fresh.flatten().nonzero().squeeze(1)
    return Prefixes(unique.flatten()[firsts], firsts % L, places, firsts, ends, captions)


class CutTextTransformer(TextTransformer):
    """open_clip's text tower, causal, for captions cut to the longest of the batch, with the same embeddings.

    It takes open_clip's own way where the tower is of another make (blocks other than open_clip's default, tokens
    returned beside the embedding); batches shorter than the context fit there, too, which open_clip 3.3 cuts the
    positions for, but not the causal mask.
    """

    def forward(self, text: Tensor) -> Tensor:
        """Tokens [B, L] → [B, D], not normalised."""
        if not self._plain():
            embeddings: Tensor = super().forward(text)
            return embeddings
        ends = end_of_text(text, self.pool_type, self.eos_id)
        share = not _traced() and text.device.type == "cpu" and len(text) >= SHARE_FROM
        prefixes = (shared_prefixes if share else every_place)(text, ends)
        dtype = self.transformer.get_cast_dtype()
        position = self.positional_embedding.to(dtype).index_select(0, prefixes.positions)
        x = self.token_embedding(prefixes.tokens).to(dtype) + position
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            if self.transformer.grad_checkpointing and not _traced():
                x = checkpoint(run_block, block, x, prefixes, use_reentrant=False)
            else:
                x = run_block(block, x, prefixes)
        x = self.ln_final(run_last_block(last, x, prefixes))
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        return x if prefixes.captions is None else x.index_select(0, prefixes.captions)

    def _plain(self) -> bool:
        """Whether this is the tower that `forward` computes by itself."""
        blocks = self.transformer.resblocks
        return (
            not (self.output_tokens or self.use_pad_mask)
            and self.cls_emb is None
            and self.pool_type != "none"
            and len(blocks) > 0
            and all(type(block) is ResidualAttentionBlock for block in blocks)
            and all(type(block.attn) is nn.MultiheadAttention for block in blocks)
        )

    def _embeds(self, text: Tensor) -> tuple[Tensor, Tensor | None]:
        x, mask = super()._embeds(text)
        if mask is not None and mask.ndim == 2:
            mask = mask[: x.shape[1], : x.shape[1]]
        return x, mask


def end_of_text(text: Tensor, pool_type: str, eos_id: int) -> Tensor:
    """[B] the place whose output is the embedding, as open_clip's `text_global_pool` finds it."""
    if pool_type == "argmax":
        return text.argmax(-1)
    if pool_type == "eos":
        return (text == eos_id).int().argmax(-1)
    return torch.full_like(text[:, 0], 0 if pool_type == "first" else text.shape[1] - 1)


def run_block(block: ResidualAttentionBlock, x: Tensor, prefixes: Prefixes) -> Tensor:
    """One block at every prefix, [P, W] → [P, W]."""
    attn = block.attn
    qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    query, key, value = _heads(prefixes.spread(_exact(qkv)), attn.num_heads, 3)
    mixed = prefixes.gather(attend(query, key, value).transpose(1, 2).flatten(2)).to(qkv.dtype)
    x = x + block.ls_1(attn.out_proj(mixed))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x


def run_last_block(block: ResidualAttentionBlock, x: Tensor, prefixes: Prefixes) -> Tensor:
    """The last block at the captions' ends alone, which look at the tokens up to them, [P, W] → [R, W]."""
    attn, W = block.attn, x.shape[1]
    normed = block.ln_1(x)
    if _exported():  # quantisers know a matrix multiplied as a whole
        query, keys_values = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias).split((W, 2 * W), 1)
        query = prefixes.at_ends(query)
    else:
        query = F.linear(prefixes.at_ends(normed), attn.in_proj_weight[:W], attn.in_proj_bias[:W])
        keys_values = F.linear(normed, attn.in_proj_weight[W:], attn.in_proj_bias[W:])
    key, value = _heads(prefixes.spread(_exact(keys_values)), attn.num_heads, 2)
    (wanted,) = _heads(_exact(query)[:, None], attn.num_heads, 1)
    seen = torch.arange(key.shape[2], device=x.device) <= prefixes.ends[:, None]
    mixed = attend(wanted, key, value, seen[:, None, None]).flatten(1).to(query.dtype)
    x = prefixes.at_ends(x)
    x = x + block.ls_1(attn.out_proj(mixed))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention within captions, causal where nothing else is said.

    For captions on a CPU two batched products beat torch's fused kernel, which is made for long texts: forward and
    backward take 0.4 to 0.8 of its time in float32, and a tenth to a third of its time in bfloat16.

    Args:
        query: [R, H, Q, W/H].
        key: [R, H, L, W/H].
        value: [R, H, L, W/H].
        seen: Which keys each query looks at, bool, broadcast to [R, H, Q, L].

    Returns:
        [R, H, Q, W/H].
    """
    if query.device.type != "cpu" or _exported():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=seen is None)
    L = key.shape[2]
    seen = torch.ones(L, L, dtype=torch.bool).tril() if seen is None else seen
    unseen = torch.zeros(seen.shape).masked_fill(~seen, -math.inf).transpose(-2, -1)
    with torch.autocast("cpu", enabled=False):
        # keys before queries: torch's softmax over a last dimension of a caption's length takes three times as long
        scores = key @ (query * query.shape[-1] ** -0.5).transpose(2, 3) + unseen  # [R, H, L, Q]
        return scores.softmax(-2).transpose(2, 3) @ value


def _heads(packed: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """[R, L, parts · W] → `parts` tensors [R, H, L, W/H]"""
    return packed.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def _exact(x: Tensor) -> Tensor:
    """float32 on a CPU, where half precision is slower in attention, and sums over many captions would round."""
    return x.float() if x.device.type == "cpu" and not _exported() else x


def _exported() -> bool:
    """Whether an exporter watches: its targets know attention as one operation, and have types of their own."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _traced() -> bool:
    """Whether an exporter or a compiler watches: no sizes may depend on the tokens then."""
    return torch.compiler.is_compiling() or _exported()
