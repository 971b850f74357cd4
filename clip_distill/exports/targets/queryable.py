"""Queryable (github.com/mazzzystar/Queryable): photo search on iOS. The models of its project, read from its code."""

from __future__ import annotations

from pathlib import Path

from clip_distill.exports.target import Given, ImageFile, Target, TextFile
from clip_distill.exports.tokenizer_files import END, START
from clip_distill.system.files import write_bytes, write_json
from clip_distill.tokens.light import ClipBPE


def write_vocabulary(folder: Path, given: Given) -> None:
    """vocab.json and merges.txt, as Hugging Face's slow tokenizer of CLIP has them."""
    bpe = ClipBPE()
    names = {"<start_of_text>": START, "<end_of_text>": END}
    write_json(folder / "vocab.json", {names.get(token, token): id for token, id in bpe.vocab.items()})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in bpe.merges)]
    write_bytes(folder / "merges.txt", ("\n".join(lines) + "\n").encode())


QUERYABLE = Target(
    name="queryable",
    program="Queryable for iOS: models that Xcode compiles into the app",
    image=ImageFile("ImageEncoder_mobileCLIP_s2", "colorImage", "embOutput", 256, dtype="uint8"),
    text=TextFile("TextEncoder_float32", "prompt", "embOutput", dtype="float32", length=77),
    widths=(512,),
    tokenizers=("clip",),
    beside=write_vocabulary,
    licence="merges.txt, vocab.json: CLIP's, of OpenAI, MIT",
    runtime="coreml",
)
