"""The presets' students of teachers of several kinds, made here: what each keeps of its teacher.

    python benchmarks/presets.py --out results/presets [--preset smallest balanced best] [--only vit fastvit siglip]

Each teacher is trained from nothing on drawn scenes (64×64, of the quickstart): a ViT of ViT-B/32's depth, a FastViT as
MobileCLIP has one, and a ViT beside a text tower without causal mask that pools its last token, as SigLIP has it. Then,
by the commands: `embed`, `fit --preset …` of each tower without any other flag, `evaluate`. A teacher, a store or a run
that is there is kept. OUT.json has all numbers, OUT.md the table.
Shapes: B batch, S image side.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import ClipLoss, CustomTextCLIP
from safetensors.torch import save_file

from clip_distill.cli import main as cli
from clip_distill.corpus.layout import scan
from clip_distill.pixels.views import normalise
from clip_distill.system.files import read_json, write_json
from clip_distill.tokens.encode import tokenize
from clip_distill.towers.spec import cut_padding
from clip_distill.walkthrough.scenes import draw_dataset
from clip_distill.walkthrough.teacher import TOKENIZER, captions_by_photo, preprocess_cfg, read_pixels

SIDE, EMBED_DIM = 64, 128
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 4, "layers": 4}
UNMASKED = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
TIMM = {"image_size": SIDE, "timm_model_pretrained": False}
TEACHERS: dict[str, dict[str, Any]] = {
    "vit": {
        "vision_cfg": {"image_size": SIDE, "patch_size": 16, "width": 192, "layers": 12, "head_width": 64},
        "text_cfg": TEXT,
    },
    "fastvit": {"vision_cfg": TIMM | {"timm_model_name": "fastvit_t8", "timm_pool": "avg"}, "text_cfg": TEXT},
    "siglip": {
        "vision_cfg": {"image_size": SIDE, "patch_size": 16, "width": 192, "layers": 12, "head_width": 64},
        "text_cfg": TEXT | UNMASKED,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/presets"), help="folder of everything")
    parser.add_argument("--preset", nargs="+", default=["balanced"], choices=["smallest", "balanced", "best"])
    parser.add_argument("--only", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--photos", type=int, default=3000, help="to train on")
    parser.add_argument("--epochs", type=int, default=6, help="of the teachers")
    given = parser.parse_args()
    data = given.out / "data"
    draw_dataset(data, train=given.photos)
    records = []
    for name in given.only:
        teacher = given.out / "teachers" / name
        if not teacher.exists():
            train_teacher(name, data, teacher, given.epochs)
        records += [measure(given.out, data, teacher, preset) for preset in given.preset]
        write_json(given.out / "presets.json", records)
        (given.out / "presets.md").write_text(table(records), encoding="utf-8")
    print(table(records))


def train_teacher(name: str, data: Path, out: Path, epochs: int, batch: int = 64, lr: float = 1e-3) -> None:
    """CLIP's contrastive training (Radford et al., 2021)."""
    torch.manual_seed(0)
    cfg = {"embed_dim": EMBED_DIM, **TEACHERS[name]}
    model = CustomTextCLIP(**cfg).train()
    width = TEXT["context_length"] if "no_causal_mask" in cfg["text_cfg"] else None  # causal towers need no padding
    cut_padding(model.text)
    split = scan(str(data)).train
    pixels, texts = read_pixels(split), captions_by_photo(split)
    tokens = tokenize(TOKENIZER, [text for each in texts for text in each])
    first = np.cumsum([0] + [len(each) for each in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1)
    steps = epochs * (len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    random, contrast = np.random.default_rng(0), ClipLoss()
    for step in range(steps):
        if step % (len(pixels) // batch) == 0:
            order = random.permutation(len(pixels))
        start = step * batch % (len(pixels) // batch * batch)
        photos = order[start : start + batch]
        captions = tokens.take(random.integers(first[photos], first[photos + 1])).pad(TOKENIZER.pad_id, width)
        loss = contrast(*model(normalise(pixels[photos], preprocess_cfg(SIDE)), captions))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 20 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.2f}", flush=True)
    out.mkdir(parents=True)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, out / "open_clip_model.safetensors")
    write_json(
        out / "open_clip_config.json",
        {"model_cfg": cfg | {"custom_text": True}, "preprocess_cfg": preprocess_cfg(SIDE)},
    )


def measure(out: Path, data: Path, teacher: Path, preset: str) -> dict[str, Any]:
    """Embed, fit both towers by the preset, evaluate."""
    name, store = teacher.name, out / "stores" / teacher.name
    where = ["--data", str(data), "--store", str(store)]
    cli.main(["embed", *where, "--teacher", f"local-dir:{teacher}"])
    runs, seconds = {}, {}
    for tower in ("image", "text"):
        runs[tower] = out / "runs" / f"{name}-{preset}-{tower}"
        took = runs[tower] / "seconds.json"
        if not took.is_file():
            start = time.perf_counter()
            cli.main(["fit", "--tower", tower, *where, "--preset", preset, "--out", str(runs[tower]), "--overwrite"])
            write_json(took, time.perf_counter() - start)
        seconds[tower] = read_json(took)
    result = runs["text"] / "evaluation.json"
    students = [f"--{tower}_student={run}" for tower, run in runs.items()]
    cli.main(["evaluate", *where, *students, "--out", str(result)])
    return {"teacher": name, "preset": preset, "seconds": seconds, "report": json.loads(result.read_text())}


def table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| teacher | its towers | mean recall | preset | image student | kept | text student | kept | both | seconds |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in records:
        report = record["report"]
        pairs = {(pair["image"], pair["text"]): pair for pair in report["pairings"]}
        kept = {pair: f"{found['kept']['mean_recall']:.0f}%" for pair, found in pairs.items()}
        theirs = " + ".join(f"{count / 1e6:.1f}M" for count in report["teacher"]["parameters"].values() if count)
        sizes = {tower: f"{student['parameters'] / 1e6:.2f}M" for tower, student in report["students"].items()}
        cells = [
            record["teacher"], theirs, f"{pairs['teacher', 'teacher']['mean_recall']:.1f}", record["preset"],
            sizes["image"], kept["student", "teacher"], sizes["text"], kept["teacher", "student"],
            kept["student", "student"], " + ".join(f"{seconds:.0f}" for seconds in record["seconds"].values()),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
