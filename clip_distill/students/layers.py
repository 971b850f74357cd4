"""A tower as a sequence of layers: which train, how deep a parameter lies, what training skips, drops or recomputes.

Layer 0 is what comes first (the stem of a convolutional net, patches or tokens and their positions), then one layer per
block, and last what follows the blocks (norms, head, projection). Coarse layers are a convolutional net's stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from timm.models import checkpoint_seq, group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_distill.students.cut import CutBackbone, blocks_of, stages
from clip_distill.system.errors import InvalidValue
from clip_distill.towers.thin import ThinEmbedding

# timm's patterns (`group_matcher`) for towers that don't have their own: what they leave out is the last layer
TRANSFORMER = {
    "first": r"^(?!transformer\.|ln_post|ln_final|proj|text_projection|head|attn_pool)",
    "blocks": r"^transformer\.resblocks\.(\d+)",
}
STAGE = r"^trunk\.(?:blocks\.|stages\.|layer|s)(\d+)"
CUT_STAGES = {"first": r"^trunk\.(?!blocks|stages|layer\d|s\d)", "blocks": STAGE}
CUT_BLOCKS = {"first": CUT_STAGES["first"], "blocks": [(rf"{STAGE}\.(?:blocks\.)?b?(\d+)\.", None), (STAGE, (0,))]}


def layer_of(student: nn.Module, coarse: bool = False) -> dict[str, int]:
    """Each parameter's name → its layer.

    Raises:
        ValueError: It is a tower of another build, whose blocks are not known.
    """
    trunk: Any = getattr(student, "trunk", None)
    if hasattr(trunk, "group_matcher"):
        within = group_parameters(trunk, trunk.group_matcher(coarse=coarse), reverse=True)
        last = max(within.values()) + 1
        return {name: within.get(name.removeprefix("trunk."), last) for name, _ in student.named_parameters()}
    if hasattr(getattr(student, "transformer", None), "resblocks"):
        matcher: dict[str, Any] = TRANSFORMER
    elif isinstance(trunk, nn.Sequential) and stages(trunk):
        matcher = CUT_STAGES if coarse else CUT_BLOCKS
    else:
        raise InvalidValue(
            "expected a student of this project's (vit, timm, timm_cut, transformer), whose order of layers is known; "
            f"found {type(student).__name__}. Leave optimizer.layer_decay at 1, and let student.freeze name modules"
        )
    return dict(group_parameters(student, matcher, reverse=True))


def freeze(student: nn.Module, what: int | Sequence[str]) -> None:
    """Let a student's first layers, or named modules, keep their weights: they get no gradients.

    Where all that comes before a module is frozen too, its forward pass keeps nothing for a backward pass.

    Args:
        student: The tower.
        what: N for what comes first and the first N blocks (of a convolutional net: stages), 0 for nothing; or names of
            modules and parameters, `named_modules()`'s.

    Raises:
        ValueError: There are fewer blocks, there is no such module, or nothing is left to train.
    """
    names = [name for name, _ in student.named_parameters()]
    if isinstance(what, int):
        if what == 0:
            return
        layers = layer_of(student, coarse=True)
        blocks = max(layers.values()) - 1
        if not 0 < what <= blocks:
            raise InvalidValue(f"student.freeze: expected up to {blocks} blocks or stages, found {what}")
        frozen = {name for name in names if layers[name] <= what}
    else:
        frozen = set()
        for part in what:
            found = {name for name in names if name == part or name.startswith(f"{part}.")}
            if not found:
                have = ", ".join(name for name, _ in student.named_modules() if 0 < len(name.split(".")) < 4 and name)
                raise InvalidValue(f"student.freeze: expected modules of the student ({have}), found {part!r}")
            frozen |= found
    if len(frozen) == len(names):
        raise InvalidValue(f"student.freeze: expected something left to train, found all of it frozen by {what!r}")
    for name in frozen:
        student.get_parameter(name).requires_grad_(False)
    rest(student)


def rest(student: nn.Module) -> None:
    """Put what is frozen into eval mode, so that batch norms keep their statistics; after each `student.train()`."""
    for module in student.modules():
        parameters = list(module.parameters())
        if parameters and not any(each.requires_grad for each in parameters):
            module.eval()


def skip_frozen(student: nn.Module) -> None:
    """Let a student's `forward` begin behind its frozen first parts, with what these make of images.

    Raises:
        ValueError: It is no timm_cut student, or its first part trains.
    """
    if not isinstance(student, CutBackbone):
        raise InvalidValue(
            f"loader.features: expected a timm_cut student, found {type(student).__name__}. Leave it out"
        )
    frozen = itertools.takewhile(lambda part: not any(p.requires_grad for p in part.parameters()), student.parts)
    student.done = len(list(frozen))
    if not student.done:
        raise InvalidValue(
            "loader.features: expected a student whose first stages are frozen, found one that trains from the first. "
            "Give --student.freeze N, or leave it out"
        )


class WordDropout(nn.Embedding):
    """A token table that drops whole words while training; see `drop_words`."""

    dropped: float

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(super().forward(input), self.dropped, self.training)


class ThinWordDropout(ThinEmbedding):
    """The same of a thin table."""

    dropped: float

    def forward(self, tokens: Tensor) -> Tensor:
        return F.dropout1d(super().forward(tokens), self.dropped, self.training)


def drop_words(student: nn.Module, share: float) -> None:
    """Let a text student see no embedding at a share of its tokens while training, others being scaled up for it.

    It learns to guess the whole caption from the rest, so that no rare word carries all of its meaning. Dropping whole
    words at the input is word dropout (Iyyer et al., 2015, "Deep Unordered Composition Rivals Syntactic Methods"); each
    place draws for itself, but captions of a batch that begin alike share what is dropped there on a CPU.

    Raises:
        ValueError: It has no table of tokens by open_clip's name, or that table does not train.
    """
    dropping = {nn.Embedding: WordDropout, ThinEmbedding: ThinWordDropout}
    if type(getattr(student, "token_embedding", None)) not in dropping:
        raise InvalidValue(
            "student.word_dropout: expected a student with a `token_embedding` of type nn.Embedding or ThinEmbedding, "
            f"found {type(student).__name__}. Leave it out"
        )
    table: Any = student.token_embedding
    if not all(each.requires_grad for each in table.parameters()):
        raise InvalidValue(
            "student.word_dropout: expected token embeddings that train, found them frozen. Leave one of the two out"
        )
    table.__class__ = dropping[type(table)]  # same parameters and state dict; only the forward pass differs
    table.dropped = share


class Recomputed(nn.Sequential):
    """Blocks that keep their inputs alone while training, and run again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = checkpoint_seq(self, x, use_reentrant=False)
        else:
            for block in self:
                x = block(x)
        return x


def recompute(student: nn.Module) -> None:
    """Let a student's blocks keep their inputs alone: less memory for a second forward pass (Chen et al., 2016).

    Raises:
        ValueError: It is a tower that can't.
    """
    trunk = getattr(student, "trunk", None)
    found: dict[str, Any] = dict(stages(trunk)) if isinstance(trunk, nn.Sequential) else {}
    if found:
        for stage in found.values():
            if type(held := blocks_of(stage)) is nn.Sequential:
                held.__class__ = Recomputed  # same parameters and state dict; only the forward pass differs
            if hasattr(stage, "grad_checkpointing"):
                stage.grad_checkpointing = True  # timm's own switch of a stage
        return
    switch = getattr(student, "set_grad_checkpointing", None)
    if switch is None:
        raise InvalidValue(
            f"--checkpointing: expected a student with blocks or `set_grad_checkpointing()`, found "
            f"{type(student).__name__}"
        )
    switch()


@contextmanager
def statistics_kept(student: nn.Module) -> Iterator[None]:
    """Batch norms don't count a batch within: for the backward pass, where recomputed blocks would count it twice."""
    norms = [each for each in student.modules() if isinstance(each, _BatchNorm)]
    usual = [(each.momentum, each.num_batches_tracked) for each in norms]
    for each in norms:
        each.momentum, each.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for each, (momentum, count) in zip(norms, usual, strict=True):
            each.momentum, each.num_batches_tracked = momentum, count
