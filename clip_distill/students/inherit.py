"""A student's first weights, cut from its teacher's tower.

Two of open_clip's transformers are matched part by part, as in TinyCLIP's weight inheritance (Wu et al., 2023): evenly
spaced layers, and of each axis a share of its channels: leading ones, important ones, or (`principal`) leading ones
after a rotation that gathers what matters there. Those of the residual stream are the same for all that reads or writes
it. Any other pair (timm backbones) is matched by name: tensors of the same name give their leading channels, batch
norms' statistics among them.

Shapes: W and w the teacher's and the student's width, H and h heads, C and c channels of a head.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from clip_distill.students.principal import principal
from clip_distill.system.errors import InvalidValue
from clip_distill.tokens.pruned import kept_ids
from clip_distill.towers.spec import TowerSpec
from clip_distill.towers.thin import ThinEmbedding, make_whole

Select = Literal["leading", "important", "principal"]
Places = tuple[Tensor, Tensor]  # positions along an axis of the student, and the teacher's that go there

TABLE = "token_embedding.weight"
# The axes of each tensor of open_clip's transformers; "own" ones are as long in both
AXES = {
    "conv1.weight": ("stream", "own", "own", "own"),
    "class_embedding": ("stream",),
    "positional_embedding": ("position", "stream"),
    "token_embedding.weight": ("token", "stream"),
    "text_projection": ("stream", "own"),
    "text_projection.weight": ("own", "stream"),
    "proj": ("stream", "own"),
    **{f"{norm}.{part}": ("stream",) for norm in ("ln_pre", "ln_post", "ln_final") for part in ("weight", "bias")},
}
LAYER_AXES = {
    "attn.in_proj_weight": ("qkv", "stream"),
    "attn.in_proj_bias": ("qkv",),
    "attn.out_proj.weight": ("stream", "value"),
    "attn.out_proj.bias": ("stream",),
    "mlp.c_fc.weight": ("hidden", "stream"),
    "mlp.c_fc.bias": ("hidden",),
    "mlp.c_proj.weight": ("stream", "hidden"),
    "mlp.c_proj.bias": ("stream",),
    "ls_1.gamma": ("stream",),
    "ls_2.gamma": ("stream",),
    **{f"{norm}.{part}": ("stream",) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")},
}
WRITES = re.compile(r"(attn\.out_proj|mlp\.c_proj)\.(weight|bias)$")  # what a layer adds to the stream


def inherit(
    spec: TowerSpec, student: nn.Module, source: TowerSpec, teacher: nn.Module, select: Select = "leading"
) -> str:
    """Overwrite what of `student` the teacher has; the rest keeps its weights.

    Args:
        spec: What the student is.
        student: The tower to start.
        source: What the teacher's tower is.
        teacher: The teacher's tower, of the same modality.
        select: Which heads and channels of a wider transformer: its leading ones, the most important by weight, or its
            principal directions.

    Returns:
        A line that says how much was inherited.

    Raises:
        ValueError: Nothing of the teacher fits, or other channels than the leading ones are asked for between towers
            that are no transformers.
    """
    if isinstance(thin := getattr(student, "token_embedding", None), ThinEmbedding):
        whole: Any = make_whole(copy.deepcopy(student))
        report = inherit(spec, whole, source, teacher, select)
        thin.take(whole.token_embedding.weight)
        student.load_state_dict({n: t for n, t in whole.state_dict().items() if n != TABLE}, strict=False)
        return f"{report}; its token table in {thin.rows.embedding_dim} directions"
    own = {name: tensor for name, tensor in student.state_dict().items() if tensor.is_floating_point()}
    theirs = {name: tensor for name, tensor in teacher.state_dict().items() if tensor.is_floating_point()}
    kinds = (TextTransformer, VisionTransformer)
    if isinstance(student, kinds) and isinstance(teacher, kinds) and spec.tower == source.tower:
        pieces = _transformer(spec, student, source, teacher, select)
    elif select == "leading":
        pieces = _by_name(own, theirs)
    else:
        raise InvalidValue(
            f"student.select {select}: expected a student and a teacher of open_clip's own transformers, found "
            f"{type(student).__name__} and {type(teacher).__name__}. Leave it out: tensors of the same name then give "
            "their leading channels"
        )
    taken: dict[str, int] = {}
    with torch.no_grad():
        for name, target, part, places in pieces:
            target[_grid([to for to, _ in places])] = part[_grid([of for _, of in places])].to(target.dtype)
            taken[name] = math.prod(len(to) for to, _ in places)
    if not sum(taken.values()):
        raise InvalidValue(
            f"student.init teacher: nothing of the teacher's {type(teacher).__name__} ({source.teacher.get('name')}) "
            f"fits the student's {type(student).__name__}. Choose a student of the teacher's own kind (vit or "
            "transformer for open_clip's, timm or timm_cut for timm's), or --student.init random"
        )
    return _report(own, taken, source)


def _transformer(
    spec: TowerSpec, student: nn.Module, source: TowerSpec, teacher: nn.Module, select: Select
) -> Iterator[tuple[str, Tensor, Tensor, list[Places]]]:
    """What goes where between two of open_clip's transformers; layers that a deeper student has more add nothing."""
    own, theirs = student.state_dict(), teacher.state_dict()
    blocks, their_blocks = (_blocks(tower) for tower in (student, teacher))
    width, their_width = (len(state["positional_embedding"][0]) for state in (own, theirs))
    axes = {"token": _tokens(spec, source)}
    theirs = theirs | _resampled(student, teacher)
    if select == "principal":
        counts = {f"transformer.resblocks.{i}.": block.attn.num_heads for i, block in enumerate(their_blocks)}
        theirs = principal(theirs, width, counts, axes["token"][1])
    elif select == "important":
        axes["stream"] = _places(width, their_width, _stream_scores(theirs))
    for name in own.keys() & theirs.keys() & AXES.keys():
        yield name, own[name], theirs[name], _along(AXES[name], axes, own[name], theirs[name])
    layers = dict(zip(*_spread(len(blocks), len(their_blocks)), strict=True))
    for layer, block in enumerate(blocks):
        if layer not in layers:
            for name, tensor in block.state_dict().items():
                if WRITES.search(name):
                    tensor.zero_()
            continue
        prefix = f"transformer.resblocks.{layers[layer]}."
        mine = block.state_dict()
        given = {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
        heads = block.attn.num_heads, their_blocks[layers[layer]].attn.num_heads
        inner, factor = _inner(mine, given, heads, select)
        inner |= axes
        for name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            given[name] = torch.cat([given[name].tensor_split(3)[0] * factor, *given[name].tensor_split(3)[1:]])
        for name in mine.keys() & given.keys() & LAYER_AXES.keys():
            places = _along(LAYER_AXES[name], inner, mine[name], given[name])
            yield f"transformer.resblocks.{layer}.{name}", mine[name], given[name], places


def _blocks(tower: Any) -> list[Any]:
    return list(tower.transformer.resblocks)


def _along(axes: Sequence[str], known: dict[str, Places], target: Tensor, source: Tensor) -> list[Places]:
    """Places of each axis of a tensor; where nothing is chosen, the leading ones."""
    sizes = zip(axes, target.shape, source.shape, strict=True)
    return [known[axis] if axis in known else _places(own, theirs) for axis, own, theirs in sizes]


def _places(own: int, theirs: int, scores: Tensor | None = None) -> Places:
    """The teacher's leading positions, or those of the highest scores, in their order."""
    count = min(own, theirs)
    chosen = torch.arange(count) if scores is None else scores.topk(count).indices.sort().values
    return torch.arange(count), chosen


def _spread(own: int, theirs: int) -> tuple[list[int], list[int]]:
    """Evenly spaced layers of the deeper tower, first and last among them, for all layers of the other."""
    few, many = sorted((own, theirs))
    spaced = torch.linspace(0, many - 1, few).round().int().tolist()
    return (spaced, list(range(few))) if own > theirs else (list(range(few)), spaced)


def _tokens(spec: TowerSpec, source: TowerSpec) -> Places:
    """Rows of the token table that mean the same token; none where the tokenizers differ."""
    own, theirs = ({**each.tokenizer, "context_length": 0} for each in (spec, source))
    kept = kept_ids(own)
    if kept is not None and kept_ids(theirs) is None and theirs.get("source") == "clip":
        return torch.arange(len(kept)), torch.from_numpy(kept)
    rows = own.get("vocab_size", 0) if own == theirs else 0
    return torch.arange(rows), torch.arange(rows)


def _inner(
    own: dict[str, Tensor], theirs: dict[str, Tensor], heads: tuple[int, int], select: Select
) -> tuple[dict[str, Places], float]:
    """A layer's own channels: those of queries, keys and values by head, and the hidden ones of its MLP.

    The importance of a channel is the product of the L2 norms of the weights into and out of it, which does not change
    when one side is scaled up and the other down.

    Returns:
        Places by axis, and what queries are multiplied by: attention divides by the root of the head's width, so heads
        of another width that keep their products need it.
    """
    width, their_width = (len(state["attn.in_proj_bias"]) // 3 for state in (own, theirs))
    sizes = width // heads[0], their_width // heads[1]
    hidden = len(own["mlp.c_fc.bias"]), len(theirs["mlp.c_fc.bias"])
    query, key, value = theirs["attn.in_proj_weight"].norm(dim=1).reshape(3, heads[1], sizes[1])  # [H, C] each
    value = value * theirs["attn.out_proj.weight"].norm(dim=0).reshape(heads[1], sizes[1])
    important = select != "leading"
    scores = theirs["mlp.c_fc.weight"].norm(dim=1) * theirs["mlp.c_proj.weight"].norm(dim=0)
    chosen = _places(*heads, value.square().sum(1) if important else None)[1]
    looks, values = (_by_head(heads[0], sizes, chosen, each, important) for each in (query * key, value))
    parts = [(to + i * width, of + i * their_width) for i, (to, of) in enumerate((looks, looks, values))]
    qkv = torch.cat([to for to, _ in parts]), torch.cat([of for _, of in parts])
    kept = select == "principal" or sizes[0] > sizes[1]
    factor = (sizes[0] / sizes[1]) ** 0.5 if kept else 1.0
    return {"qkv": qkv, "value": values, "hidden": _places(*hidden, scores if important else None)}, factor


def _by_head(heads: int, sizes: tuple[int, int], chosen: Tensor, scores: Tensor, important: bool) -> Places:
    """Places of all heads' channels. More heads than the teacher's share the channels of one head among them.

    Args:
        heads: h.
        sizes: (c, C).
        chosen: Which of the teacher's heads, [min(h, H)].
        scores: Importance, [H, C].
        important: Whether to go by it.
    """
    size, their_size = sizes
    to, of = [], []
    for head in range(heads):
        theirs, share = int(chosen[head % len(chosen)]), head // len(chosen)
        order = scores[theirs].argsort(descending=True, stable=True) if important else torch.arange(their_size)
        channels = order[share * size : (share + 1) * size]
        to.append(head * size + torch.arange(len(channels)))
        of.append(theirs * their_size + channels)
    return torch.cat(to), torch.cat(of)


def _stream_scores(state: dict[str, Tensor]) -> Tensor:
    """[W] how much is written into each channel of the stream: squared L2 norms, all tensors weighing alike."""
    written = [tensor for name, tensor in state.items() if WRITES.search(name) and tensor.ndim == 2]  # [W, …]
    written += [state[name].T for name in ("positional_embedding", "token_embedding.weight") if name in state]
    if "conv1.weight" in state:
        written.append(state["conv1.weight"].flatten(1))
    norms = torch.stack([tensor.float().square().sum(1) for tensor in written])
    return (norms / norms.mean(1, keepdim=True)).sum(0)


def _resampled(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """The teacher's patch filters and positions, for the student's patch size and grid."""
    if not (isinstance(student, VisionTransformer) and isinstance(teacher, VisionTransformer)):
        return {}
    positions = teacher.positional_embedding.detach()[None]
    grids = {"new_size": list(student.grid_size), "old_size": list(teacher.grid_size)}
    positions = resample_abs_pos_embed(positions, **grids, num_prefix_tokens=1)[0]
    filters = resample_patch_embed(teacher.conv1.weight.detach(), list(student.patch_size))
    return {"positional_embedding": positions, "conv1.weight": filters}


def _by_name(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor, list[Places]]]:
    """Leading channels of tensors that have the same name, kernel size and as many channels or more."""
    for name in own.keys() & theirs.keys():
        target, part = own[name], theirs[name]
        if "qkv" in name:  # queries, keys and values lie one after the other
            target, part = (each.reshape(3, -1, *each.shape[1:]) for each in (target, part))
        fits = target.ndim == part.ndim and all(a <= b for a, b in zip(target.shape, part.shape, strict=True))
        if fits and ("qkv" in name or target.shape[2:] == part.shape[2:]):
            yield name, target, part, [_places(*sizes) for sizes in zip(target.shape, part.shape, strict=True)]


def _grid(positions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """An index of all combinations, as numpy's `ix_`."""
    count = len(positions)
    return tuple(each.reshape([-1 if axis == i else 1 for i in range(count)]) for axis, each in enumerate(positions))


def _report(own: dict[str, Tensor], taken: dict[str, int], source: TowerSpec) -> str:
    names = [name for name, count in taken.items() if count]
    numbers = sum(tensor.numel() for tensor in own.values())
    left: dict[str, Any] = {name.split(".")[0]: None for name in own if name not in names}
    rest = f"; the others, in {', '.join(left)}, start anew" if left else ""
    millions = f"{sum(taken.values()) / 1e6:.2f}M of {numbers / 1e6:.2f}M numbers"
    return f"inherited {len(names)} of {len(own)} tensors, {millions}, from {source.teacher.get('name')}{rest}"
