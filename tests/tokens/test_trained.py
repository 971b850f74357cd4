"""A student's own tokenizer: trained the same every time, carried by its spec, and read alike by open_clip."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from clip_distill.tokens.encode import load_tokenizer, tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.tokens.trained import END, PAD, START, NewTokenizer, load, read, train

CORPUS = ["一只狗在海滩上跑。", "两只狗在雪地里跑。", "一个女孩穿着红色的衣服。", "a dog runs", "two dogs run"] * 4
SPEC = train(CORPUS, 320)
TOKENIZER = load(SPEC)
LONG = load(dataclasses.replace(SPEC, context_length=2000))


def ids_of(text: str, tokenizer: NewTokenizer = TOKENIZER) -> list[int]:
    return [id for id in tokenizer([text])[0].tolist() if id != SPEC.pad_id]


def test_captions_begin_and_end_and_are_padded() -> None:
    names = [TOKENIZER.backend.token_to_id(token) for token in (PAD, START, END)]
    assert names == [0, 1, 2]
    row = TOKENIZER(["一只狗"])[0].tolist()
    assert len(row) == SPEC.context_length == 77
    end = row.index(2)
    assert row[0] == 1 and set(row[end + 1 :]) == {0} and 0 not in row[:end]
    long = TOKENIZER(["狗跑。" * 100])[0].tolist()
    assert (long[0], long[-1]) == (1, 2)


def test_frequent_phrases_are_single_tokens_and_punctuation_stands_alone() -> None:
    tokens = TOKENIZER.backend.encode("只狗在").tokens
    assert tokens.count(PAD) == 77 - 3
    decode = TOKENIZER.backend.decode
    assert not [id for id in range(SPEC.vocab_size) if "。" in decode([id]) and len(decode([id])) > 1]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20))
def test_no_text_is_unknown(text: str) -> None:
    assert LONG.backend.decode(LONG.backend.encode(text).ids) == unicodedata.normalize("NFKC", text).lower()


def test_spellings_of_one_text_are_one() -> None:
    for text in ("Ａ狗，跑", "Café 狗", "が"):
        assert ids_of(text) == ids_of(unicodedata.normalize("NFC", text)) == ids_of(unicodedata.normalize("NFD", text))
    assert ids_of("ＤＯＧ") == ids_of("dog") == ids_of("Dog ")


def test_the_same_captions_give_the_same_tokenizer_in_another_process() -> None:
    program = (
        "import json, sys; from clip_distill.tokens.trained import train; "
        "print(train(json.loads(sys.argv[1]), 320).sha256)"
    )
    other = subprocess.run([sys.executable, "-c", program, json.dumps(CORPUS)], capture_output=True, check=True)
    assert other.stdout.decode().strip() == SPEC.sha256


def test_a_spec_survives_json_and_damage_is_noticed() -> None:
    copy = TokenizerSpec(**json.loads(json.dumps(SPEC.as_dict())))
    assert torch.equal(load_tokenizer(copy)(CORPUS), TOKENIZER(CORPUS))
    ragged = tokenize(copy, CORPUS)
    assert torch.equal(ragged.pad(copy.pad_id, copy.context_length), TOKENIZER(CORPUS))
    with pytest.raises(ValueError, match="expected content 0000"):
        load_tokenizer(dataclasses.replace(SPEC, sha256="0" * 64))


def test_open_clip_reads_what_it_saves_alike(tmp_path: Path) -> None:
    TOKENIZER.tokenizer.save_pretrained(tmp_path)
    texts = [*CORPUS, "龘 &amp; never seen", "", "狗" * 200]
    assert torch.equal(HFTokenizer(str(tmp_path), context_length=77)(texts), TOKENIZER(texts))


def test_a_file_or_its_folder_is_read(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(TOKENIZER.backend.to_str())
    backend.enable_padding(direction="left", pad_token=PAD, pad_id=0)
    backend.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert read(str(path)) == SPEC  # the file's own padding and truncation give way
    assert load_tokenizer(read(str(tmp_path), 12))(["狗"]).shape == (1, 12)


def test_files_that_will_not_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected `train`, or a tokenizer.json"):
        read(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a tokenizer.json of Hugging Face's tokenizers"):
        read(str(tmp_path))
    backend = Tokenizer(models.WordLevel({"a": 0, "dog": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="expected a token to pad with"):
        read(str(tmp_path))


def test_sizes_and_captions_that_will_not_do_are_refused() -> None:
    with pytest.raises(ValueError, match="expected more than 259 tokens"):
        train(CORPUS, 259)
    with pytest.raises(ValueError, match="expected captions to train on"):
        train([], 1000)
