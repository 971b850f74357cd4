"""A teacher whose embeddings have fewer numbers, `reduced:STORE`: its parent with the map folded into its last layer.

Shapes: B batch, L tokens, S image side, D and K the parent's and the reduced embedding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from clip_distill.system.errors import InvalidValue
from clip_distill.towers.reduction import PREFIX, read_reduction
from clip_distill.towers.spec import Tower, TowerSpec

CLOSE = 1e-3  # of the greatest number: float32 products in another order


def load(name: str, tower: Tower) -> tuple[TowerSpec, nn.Module]:
    """One tower of the parent, as wide as the map makes it.

    Raises:
        InvalidValue: The parent is another model than the one that was reduced, or doesn't end in a linear layer.
    """
    from clip_distill.teachers import load_teacher

    store = name.removeprefix(PREFIX)
    reduction = read_reduction(store)
    spec, parent = load_teacher(reduction.parent, tower)
    if spec.teacher["weights_sha256"] != reduction.parent_sha256:
        raise InvalidValue(
            f"{name}: expected {reduction.parent} with the weights {reduction.parent_sha256}, which were reduced, "
            f"found {spec.teacher['weights_sha256']}. Put the old weights back, or reduce a store of the new ones"
        )
    narrow = replace(spec, embed_dim=reduction.map.shape[1], teacher=reduction.teacher(spec.teacher, store))
    return narrow, fold(spec, parent, narrow, torch.from_numpy(reduction.map))


def fold(spec: TowerSpec, parent: nn.Module, narrow: TowerSpec, map: Tensor) -> nn.Module:
    """A tower that gives `parent(x) @ map`: the same one, but for its last layer.

    Args:
        spec: What the parent is.
        parent: Its tower.
        narrow: The same, K wide.
        map: [D, K].

    Raises:
        InvalidValue: No linear layer gives the embedding, so that none can take the map.
    """
    tower = narrow.build().eval()
    theirs, own = parent.state_dict(), tower.state_dict()
    folded = {name: _along(tensor, own[name].shape, map) for name, tensor in theirs.items() if name in own}
    if folded.keys() == own.keys() and all(t.shape == own[name].shape for name, t in folded.items()):
        tower.load_state_dict(folded)
        inputs = _inputs(spec)
        with torch.no_grad():
            expected, found = parent(inputs) @ map, tower(inputs)
        if (expected - found).abs().max() <= CLOSE * expected.abs().max():
            return tower.requires_grad_(False)
    raise InvalidValue(
        f"{spec.teacher.get('name')}: expected a tower whose last layer is linear, to fold the map into; this "
        f"{type(parent).__name__} has none. The reduced store trains students all the same: --student.init random"
    )


def _along(tensor: Tensor, shape: torch.Size, map: Tensor) -> Tensor:
    """The map along the one axis that is D long in the parent and K in the narrow tower."""
    differ = [axis for axis, (have, want) in enumerate(zip(tensor.shape, shape, strict=False)) if have != want]
    if len(tensor.shape) != len(shape) or len(differ) != 1 or tensor.shape[differ[0]] != len(map):
        return tensor
    return torch.movedim(torch.movedim(tensor, differ[0], -1) @ map, -1, differ[0]).contiguous()


def _inputs(spec: TowerSpec) -> Tensor:
    """Noise [4, 3, S, S], or a few tokens in every order [4, L]."""
    generator = torch.Generator().manual_seed(0)
    if spec.tower == "image":
        size = spec.preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return torch.randn(4, 3, height, width, generator=generator)
    length = spec.tokenizer["context_length"]
    return torch.stack([torch.randperm(length, generator=generator) + 1 for _ in range(4)])
