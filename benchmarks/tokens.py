"""Captions tokenised per second: open_clip's tokenizer, ours, and the Rust ones that are installed, in one run.

    python benchmarks/tokens.py --data ../shared/flickr8k
    python benchmarks/tokens.py --data ../shared/flickr8k --count 5000000

Results differ from run to run with the machine's load; the ratios differ less. All must give open_clip's ids.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import itertools
import os
import time
from collections.abc import Callable
from typing import TypeVar

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from clip_distill.corpus.layout import scan
from clip_distill.tokens import encode as tokens

T = TypeVar("T")
PEERS = 20_000  # captions that the slower ones are measured on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for `clip-distill embed`")
    parser.add_argument("--count", type=int, help="repeat the captions up to this many; default: each once")
    arguments = parser.parse_args()
    corpus = scan(arguments.data)
    real = [*corpus.train.captions["text"].to_pylist(), *corpus.val.captions["text"].to_pylist()]
    texts = list(itertools.islice(itertools.cycle(real), arguments.count or len(real)))
    simple = SimpleTokenizer()
    spec = tokens.TokenizerSpec("clip", simple.context_length, simple.vocab_size)

    expected, base = measure("open_clip", lambda some: list(map(simple.encode, some)), texts[:PEERS], None)
    for name, encode in rust_tokenizers(simple).items():
        found, _ = measure(name, encode, texts[:PEERS], base)
        print(f"  {sum(a != b for a, b in zip(found, expected, strict=True))} captions with other ids")
    tokens.tokenize(spec, [])  # loads the vocabulary
    ragged, _ = measure("ours, from an empty word table", lambda some: tokens.tokenize(spec, some), texts, base)
    rows = [ragged.flat[slice(*ragged.offsets[i : i + 2])].tolist()[1:-1] for i in range(min(PEERS, len(texts)))]
    wrong = sum(a != b[: spec.context_length - 2] for a, b in zip(rows, expected, strict=True))
    print(f"  {wrong} captions with other ids")
    measure("ours, again", lambda some: tokens.tokenize(spec, some), texts, base)


def measure(name: str, function: Callable[[list[str]], T], texts: list[str], base: float | None) -> tuple[T, float]:
    """Time one call; print captions per second and how often that is `base`."""
    start = time.perf_counter()
    result = function(texts)
    seconds = time.perf_counter() - start
    rate = len(texts) / seconds
    print(
        f"{name:32} {len(texts):9,} captions in {seconds:6.2f} s: {rate:9,.0f}/s"
        + (f", ×{rate / base:.1f}" if base else "")
    )
    return result, rate


def rust_tokenizers(simple: SimpleTokenizer) -> dict[str, Callable[[list[str]], list[list[int]]]]:
    """Those that are installed, behind open_clip's own cleaning where a caption needs it; without padding."""

    def clean(texts: list[str]) -> list[str]:
        easy = [text.isascii() and text.isprintable() and "&" not in text for text in texts]
        return [" ".join(t.split()).lower() if e else simple.clean_fn(t) for t, e in zip(texts, easy, strict=True)]

    found: dict[str, Callable[[list[str]], list[list[int]]]] = {}
    if importlib.util.find_spec("tokenizers"):
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # open_clip turns it off
        merges = [(first, second) for first, second in (line.split() for line in lines)]
        hugging = Tokenizer(models.BPE(vocab=simple.encoder, merges=merges, end_of_word_suffix="</w>"))
        words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
        hugging.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        found["tokenizers"] = lambda texts: [row.ids for row in hugging.encode_batch_fast(clean(texts))]
    if importlib.util.find_spec("instant_clip_tokenizer"):
        import instant_clip_tokenizer

        instant = instant_clip_tokenizer.Tokenizer()
        found["instant_clip_tokenizer"] = lambda texts: [instant.encode(text) for text in clean(texts)]
    return found


if __name__ == "__main__":
    main()
