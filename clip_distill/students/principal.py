"""A transformer made narrower along its principal directions, before a student's weights are cut from it.

SliceGPT (Ashkboos et al., 2024) rotates the residual stream so that its first channels hold most of what is written and
read, and cuts the rest. It takes RMS norms; open_clip's layer norms become that once their gains and biases are in the
weights behind them and the stream's mean, which they drop, is left out: the directions kept are spread over w channels
that sum to zero. Directions come from the weights alone, so no data is needed. Within a head, queries and keys, values
and outputs are factorised anew by their singular values; what a head computes stays the same.

Shapes: W and w the stream's width before and after, C channels of a head, D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
LAYER = re.compile(r"transformer\.resblocks\.\d+\.")
OUTPUTS = {"ln_final": "text_projection", "ln_post": "proj"}  # the last norm, and what projects to D


@torch.no_grad()
def principal(state: Mapping[str, Tensor], width: int, heads: Mapping[str, int], rows: Tensor) -> State:
    """Weights of a transformer with a stream of `width` channels, as like as can be to a wider one.

    Args:
        state: Of one of open_clip's transformers, width W.
        width: w; where it is not below W, the stream is left as it is.
        heads: A layer's prefix, "transformer.resblocks.0.", → its attention heads.
        rows: Rows of the token table that the student has.

    Returns:
        The same names; heads and MLPs are as wide as they were, their inputs and outputs w wide.
    """
    state = {name: tensor.detach().float() for name, tensor in state.items()}
    wide = state["positional_embedding"].shape[1]
    if width < wide:
        basis = directions(state, width, rows)
        state = narrow_ends(state, basis)
        for prefix in heads:
            state |= narrow_layer(state, prefix, basis)
    for prefix, count in heads.items():
        state |= refactor_heads(state, prefix, count)
    return state


def directions(state: State, width: int, rows: Tensor) -> Tensor:
    """[w, W] from the stream to its w - 1 principal directions, as w channels that sum to zero.

    They are those of the summed second moments of all that writes to the stream and all that reads from it, each of
    trace 1.
    """
    moved = []  # [W, …] each
    for name, tensor in state.items():
        if re.search(r"(out_proj|c_proj)\.weight$", name):
            moved.append(tensor)
        elif name.endswith("attn.in_proj_weight"):
            moved.append((tensor * state[name.replace("attn.in_proj_weight", "ln_1.weight")]).T)
        elif name.endswith("mlp.c_fc.weight"):
            moved.append((tensor * state[name.replace("mlp.c_fc.weight", "ln_2.weight")]).T)
    if "token_embedding.weight" in state:
        moved.append(state["token_embedding.weight"][rows if len(rows) else slice(None)].T)
    gain = state.get("ln_pre.weight", torch.ones(()))
    moved.append((state["positional_embedding"] * gain).T)
    if "conv1.weight" in state:
        moved.append((state["conv1.weight"].flatten(1).T * gain).T)
    wide = len(moved[0])
    centre = torch.eye(wide) - 1 / wide
    moment = torch.zeros(wide, wide)
    for each in moved:
        moment += centre @ each @ each.T @ centre / (centre @ each).square().sum()
    vectors = torch.linalg.eigh(moment)[1].flip(1)[:, : width - 1]  # [W, w - 1]
    zero_sum = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.eye(width)[:, 1:]], 1))[0][:, 1:]  # [w, w - 1]
    return zero_sum @ vectors.T @ centre


def narrow_ends(state: State, basis: Tensor) -> State:
    """What is before the first layer and behind the last, with a narrow stream between."""
    width, wide = basis.shape
    grown = (wide / width) ** 0.5  # a norm's outputs have length √w, not √W
    into = basis
    if "ln_pre.weight" in state:  # its gains can't be rotated: they go into what is before it, but for their size
        gain = state["ln_pre.weight"]
        into = basis * gain @ (torch.eye(wide) - 1 / wide)
        new = {"ln_pre.weight": (gain.square().mean().sqrt() * grown).expand(width)}
        state = state | new | {"ln_pre.bias": basis @ state["ln_pre.bias"]}
    for name in ("token_embedding.weight", "positional_embedding", "class_embedding"):
        if name in state:
            state = state | {name: state[name] @ into.T}
    if "conv1.weight" in state:
        state = state | {"conv1.weight": torch.einsum("vw,wcij->vcij", into, state["conv1.weight"])}
    for norm, name in OUTPUTS.items():
        linear = f"{name}.weight" in state
        if not (linear or name in state):
            continue
        projection = state[f"{name}.weight"].T if linear else state[name]  # [W, D]
        new = grown * basis @ (state[f"{norm}.weight"][:, None] * projection)  # [w, D]
        shift = (state[f"{norm}.bias"] @ projection)[:, None]
        bias = torch.linalg.lstsq(new.T, shift, driver="gelsd").solution[:, 0]
        state = state | {f"{norm}.weight": torch.ones(width), f"{norm}.bias": bias}
        state = state | ({f"{name}.weight": new.T} if linear else {name: new})
    return state


def narrow_layer(state: State, prefix: str, basis: Tensor) -> State:
    """One layer that reads and writes a narrow stream."""
    width, wide = basis.shape
    grown = (wide / width) ** 0.5
    new: State = {}
    pairs = (("ln_1", "attn.in_proj_weight", "attn.in_proj_bias"), ("ln_2", "mlp.c_fc.weight", "mlp.c_fc.bias"))
    for norm, weight, bias in pairs:
        gain, shift = state[f"{prefix}{norm}.weight"], state[f"{prefix}{norm}.bias"]
        reads = state[prefix + weight]  # […, W]
        new[prefix + weight] = grown * (reads * gain) @ basis.T
        new[prefix + bias] = state[prefix + bias] + reads @ shift
        new |= {f"{prefix}{norm}.weight": torch.ones(width), f"{prefix}{norm}.bias": torch.zeros(width)}
    for scale, name in (("ls_1", "attn.out_proj"), ("ls_2", "mlp.c_proj")):
        gamma = state.get(f"{prefix}{scale}.gamma", torch.ones(wide))
        new[f"{prefix}{name}.weight"] = basis * gamma @ state[f"{prefix}{name}.weight"]
        new[f"{prefix}{name}.bias"] = basis * gamma @ state[f"{prefix}{name}.bias"]
        if f"{prefix}{scale}.gamma" in state:
            new[f"{prefix}{scale}.gamma"] = torch.ones(width)
    return new


def refactor_heads(state: State, prefix: str, heads: int) -> State:
    """A layer whose heads compute the same, with what matters most in their first channels."""
    weight = torch.cat([state[prefix + "attn.in_proj_weight"], state[prefix + "attn.in_proj_bias"][:, None]], 1)
    query, key, value = weight.reshape(3, heads, -1, weight.shape[1])  # [H, C, w + 1] each
    out = state[prefix + "attn.out_proj.weight"]
    out = out.reshape(len(out), heads, -1).permute(1, 0, 2)  # [H, w, C]
    query, key = refactor(query.mT, key.mT)
    out, value = refactor(out, value.mT)
    weight = torch.stack([query, key, value]).mT.flatten(0, 2)
    return {
        prefix + "attn.in_proj_weight": weight[:, :-1],
        prefix + "attn.in_proj_bias": weight[:, -1],
        prefix + "attn.out_proj.weight": out.permute(1, 0, 2).flatten(1),
    }


def refactor(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product left · rightᵀ, by its singular values: [H, m, C] and [H, n, C], greatest first."""
    (q, r), (other_q, other_r) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, values, vh = torch.linalg.svd(r @ other_r.mT, full_matrices=False)
    root = values.sqrt()[:, None]
    new = q @ u * root, other_q @ vh.mT * root
    missing = left.shape[2] - len(values[0])
    return torch.nn.functional.pad(new[0], (0, missing)), torch.nn.functional.pad(new[1], (0, missing))
