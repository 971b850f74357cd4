"""A tokenizer and a preprocessing as files that Hugging Face's libraries read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import write_json
from clip_distill.tokens.encode import load_tokenizer
from clip_distill.tokens.light import ClipBPE
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import TowerSpec

FILES = ("clip", "tokenizer.json", "transformers:", "hf-hub:", "/")  # sources of tokenizers that can be such files
START, END = "<|startoftext|>", "<|endoftext|>"  # as Hugging Face's CLIP names what open_clip calls <start_of_text>
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


def write_tokenizer(folder: Path, text: TowerSpec) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json of a text tower.

    Raises:
        InvalidValue: Its tokenizer can't be written so.
    """
    spec = TokenizerSpec(**text.tokenizer)
    if spec.source != "clip":
        loaded: Any = load_tokenizer(spec)
        folder.mkdir(parents=True, exist_ok=True)
        loaded.tokenizer.save_pretrained(folder)
        if not (folder / "tokenizer.json").is_file():
            raise InvalidValue(f"tokenizer {spec.source!r}: expected one with a tokenizer.json, found a slow one")
        return
    write_json(folder / "tokenizer.json", json.loads(clip_tokenizer().to_str()))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": spec.context_length, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", config | special | {"errors": "replace", "add_prefix_space": False})


def clip_tokenizer() -> Any:
    """CLIP's BPE as a `tokenizers.Tokenizer`: of clean text the same ids as open_clip's."""
    from ftfy.chardata import DOUBLE_QUOTE_RE, LIGATURES, SINGLE_QUOTE_RE, WIDTH_MAP
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    bpe = ClipBPE()
    vocab = dict(bpe.vocab)
    for theirs, ours in (("<start_of_text>", START), ("<end_of_text>", END)):
        vocab[ours] = vocab.pop(theirs)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=bpe.merges, end_of_word_suffix="</w>", unk_token=END))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    # of ftfy, which open_clip cleans texts by, what is the same for any text: phones type curly quotes and wide signs
    quotes = [
        normalizers.Replace(Regex(each.pattern), plain)
        for each, plain in ((SINGLE_QUOTE_RE, "'"), (DOUBLE_QUOTE_RE, '"'))
    ]
    letters = {chr(place): each for place, each in (*LIGATURES.items(), *WIDTH_MAP.items())}
    plain_letters = [normalizers.Replace(wide, narrow) for wide, narrow in letters.items() if wide != narrow]
    steps = [*plain_letters, *quotes, normalizers.NFC(), spaces, normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    cut = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spelt])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in (START, END)])
    ends = [(token, vocab[token]) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return tokenizer


def cleaning(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """open_clip's `tokenizer_kwargs`, for programs that clean texts as they say."""
    kwargs = tokenizer["cfg"].get("tokenizer_kwargs")
    return {"tokenizer_kwargs": kwargs} if kwargs else {}


def image_processor(image: TowerSpec) -> dict[str, Any]:
    """preprocessor_config.json of an image tower, as CLIPImageProcessor reads it.

    Raises:
        InvalidValue: It pads photos, which CLIPImageProcessor can't.
    """
    preprocess = image.preprocess
    mode = preprocess.get("resize_mode", "shortest")
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise InvalidValue(
            f"preprocessor_config.json: expected a tower for square photos, cropped or squashed, found "
            f"{height}×{width} and resize_mode {mode!r}"
        )
    whole = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height} if mode == "shortest" else whole,
        "resample": RESAMPLE[preprocess.get("interpolation", "bicubic")],
        "do_center_crop": mode == "shortest",
        "crop_size": whole,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }
