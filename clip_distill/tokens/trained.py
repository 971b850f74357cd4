"""A student's own tokenizer: trained on its captions, or any file of Hugging Face's `tokenizers`.

The file's content lies compressed within the `TokenizerSpec`, so in `tower.json`: a student needs no file beside it.

Shapes: N captions, C context length.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from open_clip.tokenizer import get_clean_fn
from torch import Tensor

from clip_distill.system import paths
from clip_distill.system.errors import InvalidValue, MissingPackage, NotFound
from clip_distill.tokens.spec import TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SOURCE = "tokenizer.json"
CONTENT = "tokenizer_json"  # the key of `TokenizerSpec.cfg`
PAD, START, END = "<|padding|>", "<|startoftext|>", "<|endoftext|>"
PADS = (PAD, "[PAD]", "<pad>", "<|pad|>", END)
SMALLEST = 256 + 3  # single bytes and special tokens
DEFAULT_SIZE = 4000
MOST_TEXTS = 1_000_000
PIECES = r" ?[^\s\p{P}\p{S}]+| ?[\p{P}\p{S}]|\s+"  # no token reaches over a space or a punctuation mark

clean = get_clean_fn("whitespace")  # what open_clip does before any Hugging Face tokenizer


class NewTokenizer:
    """A tokenizer behind open_clip's cleaning of text, as open_clip runs it once it is exported.

    Args:
        content: Of a tokenizer.json.
        context_length: C.
        pad_id: Fills a row behind its caption's end.
    """

    def __init__(self, content: str, context_length: int, pad_id: int) -> None:
        self.backend = _parse(content, SOURCE)
        self.context_length = context_length
        self.pad_token = str(self.backend.id_to_token(pad_id))
        self.backend.enable_truncation(context_length)
        self.backend.enable_padding(pad_id=pad_id, pad_token=self.pad_token, length=context_length)

    def __call__(self, texts: list[str]) -> Tensor:
        """N strings → int64 [N, C]."""
        encoded = self.backend.encode_batch_fast([clean(text) for text in texts])
        return torch.tensor([each.ids for each in encoded], dtype=torch.int64).reshape(-1, self.context_length)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The same for `transformers`, whose `save_pretrained` writes the files that open_clip reads."""
        from transformers import PreTrainedTokenizerFast

        build: Any = PreTrainedTokenizerFast  # its constructor has no types
        known = {"bos_token": START, "eos_token": END, "pad_token": self.pad_token}
        named = {name: token for name, token in known.items() if self.backend.token_to_id(token) is not None}
        options = {"model_max_length": self.context_length, "padding_side": "right"}
        fast: PreTrainedTokenizerFast = build(tokenizer_object=self.backend, **options, **named)
        return fast


def train(texts: Sequence[str], vocab_size: int, context_length: int = 77) -> TokenizerSpec:
    """Train a byte-level BPE (Radford et al., 2019) on captions of any language; the same captions give the same one.

    Texts are cleaned as open_clip cleans them, then brought to NFKC and lower case. Languages without spaces need no
    segmentation: merges run within what stands between punctuation marks. A character that was never seen is read as
    its bytes in UTF-8, which all are tokens.

    Args:
        texts: Captions; of more than a million, a million evenly spaced ones are read.
        vocab_size: Most tokens, the 256 bytes and three special ones among them; few captions give fewer.
        context_length: C.

    Raises:
        ValueError: The size leaves no room for a token beyond bytes, or there are no captions.
        ImportError: `tokenizers` is not installed.
    """
    if vocab_size <= SMALLEST:
        raise InvalidValue(
            f"student.options.vocab_size: expected more than {SMALLEST} tokens, those of bytes and special ones, "
            f"found {vocab_size}. 4,000 to 8,000 suit some ten thousand captions"
        )
    if not texts:
        raise InvalidValue("student.tokenizer train: expected captions to train on, found none")
    _require_library()
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), bytes_alone])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=len(texts) > 100_000,
    )
    step = -(-len(texts) // MOST_TEXTS)
    tokenizer.train_from_iterator(map(clean, texts[::step]), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return describe(tokenizer.to_str(), "student.tokenizer train", context_length)


def read(path: str, context_length: int = 77) -> TokenizerSpec:
    """A tokenizer.json, or the one in a folder; local or a URL.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not a tokenizer of Hugging Face's `tokenizers`, or it has no token to pad with.
        ImportError: `tokenizers` is not installed.
    """
    place = paths.join(path, SOURCE) if paths.is_folder(path) else path
    if not paths.is_file(place):
        raise NotFound(
            f"student.tokenizer {path!r}: expected `train`, or a tokenizer.json or a folder with one; nothing is there"
        )
    _require_library()
    return describe(paths.read_bytes(place).decode("utf-8", "replace"), place, context_length)


def describe(content: str, source: str, context_length: int) -> TokenizerSpec:
    """The spec of a tokenizer.json's content; `source` names it in errors.

    Its own truncation and padding give way to `context_length` and padding at the end.

    Raises:
        ValueError: It can't be parsed, or it has no token to pad with.
    """
    tokenizer = _parse(content, source)
    own = (tokenizer.padding or {}).get("pad_token")
    known = (tokenizer.token_to_id(token) for token in (own, *PADS) if token)
    pad_id = next((id for id in known if id is not None), None)
    if pad_id is None:
        raise InvalidValue(
            f"{source}: expected a token to pad with ({', '.join(PADS[:-1])}, or the file's own `padding`), found "
            "none. Add one: tokenizer.add_special_tokens(['[PAD]']), then tokenizer.save(…)"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    plain = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    ends = tokenizer.encode("a").ids[-1:]
    return TokenizerSpec(
        source=SOURCE,
        context_length=context_length,
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
        pad_id=pad_id,
        cfg={CONTENT: base64.b64encode(zlib.compress(plain.encode(), 9)).decode()},
        pad_is_end=ends == [pad_id],
        sha256=hashlib.sha256(plain.encode()).hexdigest(),
    )


def load(spec: TokenizerSpec) -> NewTokenizer:
    """The tokenizer of a spec that `describe` made.

    Raises:
        ValueError: Its content is damaged.
        ImportError: `tokenizers` is not installed.
    """
    _require_library()
    content = zlib.decompress(base64.b64decode(spec.cfg[CONTENT]))
    if (found := hashlib.sha256(content).hexdigest()) != spec.sha256:
        raise InvalidValue(
            f"the student's tokenizer: expected content {spec.sha256[:12]}…, found {found[:12]}…; take tower.json from "
            "the run again"
        )
    return NewTokenizer(content.decode(), spec.context_length, spec.pad_id)


def open_clip_options(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What of a spec's `cfg` open_clip's `text_cfg` takes: all but the content, which it reads from a file."""
    return {key: value for key, value in tokenizer.get("cfg", {}).items() if key != CONTENT}


def _parse(content: str, source: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises that very class
        raise InvalidValue(
            f"{source}: expected a tokenizer.json of Hugging Face's tokenizers, found: {error}"
        ) from error


def _require_library() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "a student with its own tokenizer needs Hugging Face's tokenizers: pip install 'clip-distill[transformers]'"
        ) from error
