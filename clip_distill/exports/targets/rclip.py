"""rclip (github.com/yurijmikhalevich/rclip): words find photos on the command line. Read from its version 3.3.0."""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

from clip_distill.exports.target import CLIP_MEAN, CLIP_STD, Given, ImageFile, Target, TextFile

MODEL = "ViT-B-32-256-datacomp_s34b_b86k"
MERGES = "bpe_simple_vocab_16e6.txt.gz"


def copy_merges(folder: Path, given: Given) -> None:
    """CLIP's list of merges, where rclip looks for it."""
    place = folder / "tokenizer" / MERGES
    place.parent.mkdir(parents=True)
    with importlib.resources.as_file(importlib.resources.files("open_clip") / MERGES) as merges:
        shutil.copyfile(merges, place)


RCLIP = Target(
    name="rclip",
    program="rclip 3.3: search photos from the command line (RCLIP_DATADIR=OUT rclip …)",
    image=ImageFile(f"{MODEL}/visual", "input", "output", 256, CLIP_MEAN, CLIP_STD),
    text=TextFile(f"{MODEL}/textual", "input", "output", length=77),
    widths=(512,),
    tokenizers=("clip",),
    beside=copy_merges,
    licence=f"tokenizer/{MERGES}: CLIP's list of merges, of OpenAI, MIT",
)
