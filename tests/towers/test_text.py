"""The short way through a causal text tower, against open_clip's own code on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.model import _build_text_tower
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clip_distill.towers.spec import cut_padding
from clip_distill.towers.text import SHARE_FROM, CutTextTransformer, every_place, shared_prefixes

START, END, VOCABULARY, CONTEXT = 97, 98, 99, 12
TINY = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 3}


def captions(number: int = 24, seed: int = 0) -> Tensor:
    """int64 [number, CONTEXT]: of few words, so that many begin alike and some are the same; zeros behind the end."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(number, CONTEXT, dtype=torch.long)
    for row in tokens:
        words = int(torch.randint(0, CONTEXT - 1, (1,), generator=random))
        row[0], row[words + 1] = START, END
        row[1 : words + 1] = torch.randint(3, 6, (words,), generator=random)
    tokens[-1] = tokens[0]
    return tokens


def pair(**options: Any) -> tuple[TextTransformer, TextTransformer]:
    """open_clip's tower and ours, with the same random weights."""
    torch.manual_seed(0)
    plain = _build_text_tower(8, TINY | options)
    return plain, cut_padding(copy.deepcopy(plain))


def gradients(tower: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, 8 * len(tokens)).view(len(tokens), 8)
    tower.zero_grad()
    (tower(tokens) * weights).sum().backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


def own_way(tower: TextTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail where the tower takes open_clip's way."""

    def refuse(*_: object) -> None:
        raise AssertionError("open_clip's own way")

    monkeypatch.setattr(TextTransformer, "forward", refuse)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_type": "eos", "eos_id": END},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"proj_type": "none"},
        {"proj_bias": True},
        {"ls_init_value": 0.5},
        {"layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("number", [1, SHARE_FROM - 1, 24])
def test_embeddings_and_gradients_are_open_clips(
    options: dict[str, Any], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options == {"proj_type": "none"}:
        options = options | {"width": 8}  # of which the embedding is then
    plain, ours = pair(**options)
    tokens = captions(number)
    expected, grads = plain(tokens), gradients(plain, tokens)
    own_way(ours, monkeypatch)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=1e-5)
    found = gradients(ours, tokens)
    assert found.keys() == grads.keys() == dict(plain.named_parameters()).keys()
    for name, grad in grads.items():
        torch.testing.assert_close(
            found[name], grad, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_captions_that_have_no_end_are_read_as_open_clip_reads_them() -> None:
    plain, ours = pair()
    tokens = torch.randint(0, VOCABULARY, (40, 5), generator=torch.Generator().manual_seed(0))
    tokens[:, 1:3] = tokens[0, 1:3]
    tokens[20:, 0] = tokens[0, 0]
    padded = torch.nn.functional.pad(tokens, (0, CONTEXT - 5))
    torch.testing.assert_close(ours(tokens), plain(padded), atol=1e-5, rtol=1e-5)


def test_a_prefix_is_computed_once_and_nothing_behind_the_end() -> None:
    words = [[START, 5, 6, END, 0, 0], [START, 5, 7, 8, END, 0], [START, 5, 6, END, 0, 0], [START, END, 0, 0, 0, 0]]
    tokens = torch.tensor(words)
    found = shared_prefixes(tokens, tokens.argmax(1))
    # start | 5 6 end | 7 8 end | end
    assert sorted(zip(found.positions.tolist(), found.tokens.tolist(), strict=True)) == [
        (0, START),
        (1, 5),
        (1, END),
        (2, 6),
        (2, 7),
        (3, 8),
        (3, END),
        (4, END),
    ]
    assert found.captions is not None
    again = found.spread(found.tokens)[found.captions]
    for row, back in zip(words, again.tolist(), strict=True):
        end = row.index(END) + 1
        assert back[:end] == row[:end]
    assert found.at_ends(found.tokens).tolist() == [END] * 3


def test_gather_undoes_spread() -> None:
    tokens = captions()
    for prefixes in (shared_prefixes(tokens, tokens.argmax(1)), every_place(tokens, tokens.argmax(1))):
        rows = torch.randn(len(prefixes.tokens), 4)
        assert torch.equal(prefixes.gather(prefixes.spread(rows)), rows)
    assert len(every_place(tokens, tokens.argmax(1)).tokens) == tokens.numel()


@pytest.mark.parametrize(
    "options",
    [
        {"no_causal_mask": True},
        {"embed_cls": True},
        {"pool_type": "none"},
        {"output_tokens": True},
        {"qk_norm": True},
        {"block_type": "custom", "scale_heads": True},
    ],
    ids=str,
)
def test_other_towers_go_open_clips_way(options: dict[str, Any]) -> None:
    plain, ours = pair(**options)
    expected, found = plain(captions()), ours(captions())
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("options", [{"embed_cls": True}, {"qk_norm": True}], ids=str)
def test_a_short_batch_fits_open_clips_way(options: dict[str, Any]) -> None:
    tower = pair(**options)[1]
    assert tower(captions(3)[:, :7]).shape == (3, 8)


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    ours = pair()[1].train()
    expected = gradients(ours, captions())
    ours.set_grad_checkpointing()
    found = gradients(ours, captions())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


def test_half_precision_stays_near_the_exact_embeddings() -> None:
    plain, ours = pair()
    tokens = captions()
    exact = plain(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ours(tokens)
    assert mixed.dtype == torch.bfloat16
    assert torch.cosine_similarity(mixed.float(), exact).min() > 0.999
    halved = copy.deepcopy(ours).to(torch.bfloat16)(tokens)
    assert halved.dtype == torch.bfloat16
    assert torch.cosine_similarity(halved.float(), exact).min() > 0.99


def test_an_exported_program_takes_other_batches_and_lengths() -> None:
    plain, ours = pair()
    batch, length = torch.export.Dim("batch", min=1, max=99), torch.export.Dim("length", min=2, max=CONTEXT)
    program = torch.export.export(
        ours.eval(), (captions(4)[:, :8].contiguous(),), dynamic_shapes=({0: batch, 1: length},)
    )
    for tokens in (captions(), captions(1)):
        torch.testing.assert_close(program.module()(tokens), plain(tokens), atol=1e-5, rtol=1e-5)


def test_a_compiled_tower_is_one_graph_for_all_sizes() -> None:
    plain, ours = pair(layers=2)
    expected = plain(captions())
    compiled = torch.compile(ours, backend="eager", fullgraph=True, dynamic=True)
    assert compiled(captions(9)[:, :7]).shape == (9, 8)
    torch.testing.assert_close(compiled(captions()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda tower: tower.state_dict(), lambda tower: dict(tower.named_buffers())])
def test_parameters_keep_their_names(make: Callable[[nn.Module], dict[str, Tensor]]) -> None:
    plain, ours = pair()
    assert type(ours) is CutTextTransformer
    assert make(ours).keys() == make(plain).keys()
