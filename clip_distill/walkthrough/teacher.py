"""Train a small CLIP from nothing and save it as an open_clip folder, so that there is a teacher to distil offline.

Shapes: N photos, C captions, B batch, L tokens of the longest caption in a batch, S image side.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import safetensors.torch
import torch
from open_clip import ClipLoss, CustomTextCLIP
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from clip_distill.corpus.layout import Split, scan
from clip_distill.pixels.photos import read_image
from clip_distill.pixels.views import normalise
from clip_distill.system.errors import AlreadyExists
from clip_distill.system.files import aside, read_json, write_bytes, write_json
from clip_distill.system.talk import progress
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import cut_padding

FORMAT = 1  # raise it when the same arguments train something else, so that older teachers are trained again
MARKER = "training.json"
EMBED_DIM = 128
TOKENIZER = TokenizerSpec("clip", 77, 49408)
MAX_LOGIT_SCALE = 100.0  # CLIP's own bound (Radford et al., 2021, section 2.5)


def model_cfg(side: int) -> dict[str, Any]:
    """A ResNet of one block a stage with CLIP's attention pooling, and a two-layer text transformer."""
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {"image_size": side, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None},
        "text_cfg": {
            "context_length": TOKENIZER.context_length,
            "vocab_size": TOKENIZER.vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def preprocess_cfg(side: int) -> dict[str, Any]:
    return {"size": side, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def train_teacher(
    data: Path, out: Path, epochs: int = 5, batch_size: int = 64, lr: float = 2e-3, seed: int = 0
) -> list[float]:
    """Train on the photos of `data` that have captions, and write an open_clip folder: whole, or not at all.

    A folder that the same arguments made from the same photos and captions is kept.

    Args:
        data: Folder in the documented layout; all its photos are square and of one size.
        out: The folder to make; `local-dir:OUT` is the teacher's name.
        epochs: Passes over the photos; each takes one of a photo's captions at random.
        batch_size: Photos per step, each with one caption; those of the others in the batch are the negatives.
        lr: Peak learning rate of AdamW.
        seed: Of weights, order and choice of captions.

    Returns:
        The contrastive loss of every step.

    Raises:
        FileExistsError: `out` holds something else than such a teacher.
    """
    split = scan(str(data)).train
    pixels, texts = read_pixels(split), captions_by_photo(split)
    side = pixels.shape[-1]
    made_from = {
        "format": FORMAT,
        "data": digest(pixels, texts),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
    }
    if out.exists():
        if not (out / MARKER).is_file():
            raise AlreadyExists(
                f"{out}: expected no folder or a teacher trained here ({MARKER}), found other files; use another folder"
            )
        saved = read_json(out / MARKER)
        if saved["made_from"] == made_from:
            return [float(loss) for loss in saved["losses"]]
    torch.manual_seed(seed)
    model = CustomTextCLIP(**model_cfg(side))
    losses = train(model, pixels, texts, epochs, batch_size, lr, seed)
    save(model, side, out, {"made_from": made_from, "losses": losses})
    return losses


def read_pixels(split: Split) -> Tensor:
    """uint8 [N, 3, S, S] of the split's photos, all in memory."""
    return torch.stack([pil_to_tensor(read_image(path)) for path in split.require_images().column("path").to_pylist()])


def captions_by_photo(split: Split) -> list[list[str]]:
    """[N] lists of captions, in the order of the photos; captions without a photo are left out."""
    owners = pc.index_in(split.captions.column("image_id"), value_set=split.images.column("id").combine_chunks())
    texts: list[list[str]] = [[] for _ in range(split.images.num_rows)]
    for text, owner in zip(split.require_captions().column("text").to_pylist(), owners.to_pylist(), strict=True):
        if owner is not None:
            texts[owner].append(text)
    return texts


def digest(pixels: Tensor, texts: list[list[str]]) -> str:
    """SHA-256 of what a teacher is trained on."""
    content = hashlib.sha256(pixels.numpy().data)
    content.update(repr((tuple(pixels.shape), texts)).encode())
    return content.hexdigest()


def train(
    model: CustomTextCLIP, pixels: Tensor, texts: list[list[str]], epochs: int, batch_size: int, lr: float, seed: int
) -> list[float]:
    """CLIP's contrastive training (Radford et al., 2021), in place; the loss of every step."""
    tokens = tokenize(TOKENIZER, [text for each in texts for text in each])
    first = np.cumsum([0] + [len(each) for each in texts])  # where each photo's captions begin
    cut_padding(model.text)
    model.visual.to(memory_format=torch.channels_last)  # convolutions on a CPU take three quarters of the time so
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    steps = epochs * (len(pixels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    random, contrast, losses = np.random.default_rng(seed), ClipLoss(), []
    model.train()
    with progress(total=steps, desc="training the teacher", unit="step") as bar:
        for _ in range(epochs):
            order = random.permutation(len(pixels))
            for start in range(0, len(order) - batch_size + 1, batch_size):
                photos = order[start : start + batch_size]
                captions = random.integers(first[photos], first[photos + 1])
                images = normalise(pixels[photos], preprocess_cfg(pixels.shape[-1])).contiguous(
                    memory_format=torch.channels_last
                )
                loss = contrast(*model(images, tokens.take(captions).pad(TOKENIZER.pad_id)))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
                losses.append(loss.item())
                bar.set_postfix(loss=f"{losses[-1]:.2f}", refresh=False)
                bar.update()
    return losses


def save(model: CustomTextCLIP, side: int, out: Path, training: dict[str, Any]) -> None:
    """Write the open_clip folder beside `out`, then rename."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = {"model_cfg": model_cfg(side) | {"custom_text": True}, "preprocess_cfg": preprocess_cfg(side)}
    with aside(out) as beside:
        write_bytes(beside / "open_clip_model.safetensors", safetensors.torch.save(weights))
        write_json(beside / "open_clip_config.json", config)
        write_json(beside / MARKER, training)
