"""Tokenizers without torch, for exported files: the same ids as `tokens.encode` gives.

CLIP's BPE is run by Hugging Face's `tokenizers` on the merges that open_clip ships, behind the same cleaning and the
same cutting into words.

Shapes: N texts, L tokens of the longest, C context length.
"""

from __future__ import annotations

import base64
import gzip
import html
import importlib.util
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from clip_distill.system.errors import InvalidValue, MissingPackage
from clip_distill.system.files import write_bytes

Encode = Callable[[str], list[int]]
MERGES = 49152 - 256 - 2
MERGES_FILE = "merges.txt.gz"
KNOWN_WORDS = 1 << 18  # words remembered before it starts anew
SPECIAL = ("<start_of_text>", "<end_of_text>")
WORDS = r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def light_encoder(spec: Mapping[str, Any], folder: Path | None = None) -> Encode | None:
    """A function from a text to its ids, truncated to C; None for a tokenizer that runs with torch alone.

    Args:
        spec: A `TokenizerSpec` as a dictionary.
        folder: Of an export, which has CLIP's merges with it.

    Raises:
        MissingPackage: `tokenizers` or `ftfy` is not installed.
        InvalidValue: The tokenizer's content is damaged.
    """
    kwargs = spec["cfg"].get("tokenizer_kwargs") or {}
    length = int(spec["context_length"])
    if spec["source"] in ("clip", "clip-pruned") and not kwargs:
        return _clip(spec, length, folder)
    if spec["source"] == "tokenizer.json":
        return _trained(spec, length)
    return None


def pad(rows: Sequence[Sequence[int]], pad_id: int, width: int | None = None) -> NDArray[np.int64]:
    """int64 [N, L] of ids; L is the longest row, or `width`."""
    dense = np.full((len(rows), width or max(map(len, rows))), pad_id, np.int64)
    for place, row in enumerate(rows):
        dense[place, : len(row)] = row
    return dense


def clean(text: str) -> str:
    """open_clip's `whitespace` cleaning: ftfy's repairs, HTML entities, and one space between words."""
    try:
        import ftfy
    except ImportError as error:
        raise MissingPackage("captions are cleaned by ftfy: pip install ftfy") from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _clip(spec: Mapping[str, Any], length: int, folder: Path | None) -> Encode:
    bpe = ClipBPE(folder)
    start, end = (bpe.vocab[token] for token in SPECIAL)
    pieces = None if spec["source"] == "clip" else _pieces(spec, bpe)

    def encode(text: str) -> list[int]:
        ids = [start, *bpe.encode(clean(text).lower()), end]
        if pieces is not None:
            ids = [piece for id in ids for piece in pieces[id]]
        return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]

    return encode


def merge_lines(folder: Path | None = None) -> list[str]:
    """CLIP's merges, the most frequent first: those of an export, else those that open_clip ships.

    Raises:
        MissingPackage: Neither is there.
    """
    if folder is not None and (folder / MERGES_FILE).is_file():
        return gzip.decompress((folder / MERGES_FILE).read_bytes()).decode("utf-8").splitlines()
    place = importlib.util.find_spec("open_clip")  # found, not imported, which would load torch
    if place is None or not place.submodule_search_locations:
        raise MissingPackage(
            f"CLIP's tokenizer needs its list of merges, {MERGES_FILE}, which `clip-distill export` writes, or "
            "open_clip's: export anew, or pip install 'clip-distill[train]'"
        )
    file = Path(place.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    return gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]


def save_merges(folder: Path) -> None:
    """Put CLIP's merges beside an exported text tower, so that it is read where open_clip is not installed."""
    content = "\n".join(merge_lines()).encode()
    write_bytes(folder / MERGES_FILE, gzip.compress(content, mtime=0))


class ClipBPE:
    """CLIP's byte-level BPE: words as open_clip cuts them, merged by `tokenizers`.

    Args:
        folder: Of an export, which has the merges with it.

    Attributes:
        merges: Pairs of tokens, the most frequent first.
        vocab: Token → id.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.merges = [(left, right) for left, right in (line.split() for line in merge_lines(folder))]
        # GPT-2's letters for bytes: printable ones stand for themselves
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        shown = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
        self.letters = dict(zip([*printable, *others], shown, strict=True))
        tokens = [*shown, *(f"{letter}</w>" for letter in shown), *map("".join, self.merges), *SPECIAL]
        self.vocab = {token: id for id, token in enumerate(tokens)}
        self.model = _library().models.BPE(vocab=self.vocab, merges=self.merges, end_of_word_suffix="</w>")
        self.words = regex.compile("|".join(SPECIAL) + WORDS, regex.IGNORECASE)
        self.known = {token: [self.vocab[token]] for token in SPECIAL}

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is clean and in lower case."""
        ids: list[int] = []
        for word in self.words.findall(text):
            if word not in self.known:
                if len(self.known) > KNOWN_WORDS:
                    self.known = {token: [self.vocab[token]] for token in SPECIAL}
                merged = self.model.tokenize("".join(self.letters[byte] for byte in word.encode("utf-8")))
                self.known[word] = [token.id for token in merged]
            ids += self.known[word]
        return ids


def _pieces(spec: Mapping[str, Any], bpe: ClipBPE) -> list[tuple[int, ...]]:
    """What each token of CLIP's whole vocabulary becomes, as ids of the kept ones; see `tokens.pruned`."""
    cfg = spec["cfg"]
    bits = np.frombuffer(zlib.decompress(base64.b64decode(cfg["kept"])), np.uint8)
    kept = np.flatnonzero(np.unpackbits(bits, count=cfg["whole_vocab_size"]))
    place = {int(old): new for new, old in enumerate(kept)}
    pieces: list[tuple[int, ...]] = [(place[id],) for id in range(512)]
    for id, (left, right) in enumerate(bpe.merges, 512):
        parts = [pieces[bpe.vocab[part]] for part in (left, right)]
        pieces.append((place[id],) if id in place else parts[0] + parts[1])
    return pieces + [(place[id],) for id in range(len(pieces), cfg["whole_vocab_size"])]


def _trained(spec: Mapping[str, Any], length: int) -> Encode:
    content = zlib.decompress(base64.b64decode(spec["cfg"]["tokenizer_json"]))
    try:
        tokenizer = _library().Tokenizer.from_str(json.dumps(json.loads(content)))
    except Exception as error:  # tokenizers raises that very class
        raise InvalidValue(f"tokenizer.json: expected one of Hugging Face's tokenizers, found: {error}") from error
    tokenizer.enable_truncation(length)
    return lambda text: list(tokenizer.encode(clean(text)).ids)


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models
    except ImportError as error:
        raise MissingPackage(
            "reading captions without torch needs Hugging Face's tokenizers: pip install 'clip-distill[onnx]'"
        ) from error
    return tokenizers
