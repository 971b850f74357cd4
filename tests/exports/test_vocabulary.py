"""A student with a part of the vocabulary, exported with all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch.nn.functional import cosine_similarity

from clip_distill.cli import main as cli
from clip_distill.exports.vocabulary import expand_vocabulary
from clip_distill.students import make_student
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.pruned import prune
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import save_tower

CORPUS = ["a dog runs on the beach", "two dogs run"]
OPTIONS = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}


def pruned_student(record: dict[str, Any]) -> tuple[Any, torch.nn.Module]:
    whole = TokenizerSpec(**record["tokenizer"])
    torch.manual_seed(0)
    return make_student("text", None, record, OPTIONS | {"tokenizer": prune(whole, tokenize(whole, CORPUS)).as_dict()})


def test_open_clip_gives_captions_of_the_corpus_the_same_embeddings(
    tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, student = pruned_student(load_teacher(tiny_teacher, "text")[0].teacher)
    save_tower(tmp_path / "run/student", spec, student)
    cli.main(["export", "--text_student", str(tmp_path / "run"), "--out", str(tmp_path / "exported")])
    assert "tokens, and open_clip has no such tokenizer" in capsys.readouterr().out
    name = f"local-dir:{tmp_path / 'exported'}"
    model = open_clip.create_model(name).eval()
    assert model.text.token_embedding.weight.shape == (49408, 16)
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer(name)([*CORPUS, "an unheard-of giraffe"]))
        ours = student.eval()(tokenize(TokenizerSpec(**spec.tokenizer), [*CORPUS, "an unheard-of giraffe"]).pad(0))
    torch.testing.assert_close(theirs[:2], ours[:2], atol=1e-5, rtol=1e-4)
    assert cosine_similarity(theirs[2], ours[2], dim=0) < 0.999  # said in the message


def test_a_dropped_tokens_row_is_the_mean_of_its_pieces(make_record: Callable[..., dict[str, Any]]) -> None:
    spec, student = pruned_student(make_record(8))
    whole, expanded = expand_vocabulary(spec, student)
    tokenizer: Any = load_tokenizer(TokenizerSpec(**spec.tokenizer))
    zebra = open_clip.SimpleTokenizer().encoder["zebra</w>"]
    pieces = tokenizer.encode("zebra")
    assert len(pieces) > 1
    expected = student.token_embedding.weight[pieces].mean(0)
    torch.testing.assert_close(expanded.token_embedding.weight[zebra], expected)
    assert whole.tokenizer == make_record(8)["tokenizer"]
    assert whole.cfg["vocab_size"] == 49408
    assert expand_vocabulary(whole, expanded) == (whole, expanded)
