"""rclip (github.com/yurijmikhalevich/rclip): words find photos on the command line. Read from its version 3.3.0."""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

from clip_distill.exports.target import CLIP_MEAN, CLIP_STD, ImageFile, Target, TextFile

MODEL = "ViT-B-32-256-datacomp_s34b_b86k"
MERGES = "bpe_simple_vocab_16e6.txt.gz"


def copy_merges(place: Path) -> None:
    """CLIP's list of merges."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with importlib.resources.as_file(importlib.resources.files("open_clip") / MERGES) as merges:
        shutil.copyfile(merges, place)


RCLIP = Target(
    name="rclip",
    program="rclip 3.3: search photos from the command line (RCLIP_DATADIR=OUT rclip …)",
    image=ImageFile(f"{MODEL}/visual", "input", "output", 256, CLIP_MEAN, CLIP_STD),
    text=TextFile(f"{MODEL}/textual", "input", "output", length=77),
    widths=(512,),
    tokenizers=("clip",),
    beside=lambda folder, given: copy_merges(folder / "tokenizer" / MERGES),
    licence=f"tokenizer/{MERGES}: CLIP's list of merges, of OpenAI, MIT",
)
