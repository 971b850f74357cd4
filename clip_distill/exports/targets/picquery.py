"""PicQuery (github.com/greyovo/PicQuery): photo search on Android. The assets of its CLIP build, read from its code."""

from __future__ import annotations

from clip_distill.exports.target import CLIP_MEAN, CLIP_STD, ImageFile, Target, TextFile
from clip_distill.exports.targets.rclip import copy_merges

MERGES = "bpe_vocab_gz"

PICQUERY = Target(
    name="picquery",
    program="PicQuery's CLIP build for Android: files for app/src/main/assets",
    image=ImageFile("clip-image-int8", "input", "output", 224, CLIP_MEAN, CLIP_STD),
    text=TextFile("clip-text-int8", "input", "output", dtype="int32", length=77),
    widths=(512,),
    tokenizers=("clip",),
    beside=lambda folder, given: copy_merges(folder / MERGES),
    licence=f"{MERGES}: CLIP's list of merges, of OpenAI, MIT",
    runtime="ort",
)
