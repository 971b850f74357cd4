"""Stages 2 and 5 of the GPU check: embedding by large teachers, and the quickstart from end to end."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from embed import embed_rate, queue, teacher_rate
from gpu_parts import Check

from clip_distill.corpus.layout import scan
from clip_distill.pixels.views import Views, normalise
from clip_distill.store.build import Part
from clip_distill.store.embed import ImageViews, Runner, embed_texts
from clip_distill.system.files import read_json
from clip_distill.teachers import load_teacher
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec

TEACHERS = ("ViT-B-32", "ViT-L-14")


def stage(check: Check) -> None:
    """Photos and captions a second, in half precision and, where time is left, in float32."""
    for precision in ("bf16",) if check.tiny else ("fp16", "fp32"):
        for name in TEACHERS[:1] if check.tiny else TEACHERS:
            for tower, measure in (("image", photos), ("text", captions)):
                needs = 1 if check.tiny else 20
                check.results.measure(
                    "embed", f"{name} {tower}, {precision}", needs, partial(measure, check, name, precision)
                )


def photos(check: Check, name: str, precision: str) -> dict[str, Any]:
    """Photos a second from files and of the teacher alone, and how many workers would keep up with it."""
    spec, module = load_teacher(check.teacher(name), "image")
    size = 4 if check.tiny else 256
    runner = Runner(spec, module, check.device, precision, size, check.workers)
    images, views = scan(str(check.data)).train.require_images(), Views(spec.preprocess, "none")
    dataset = ImageViews(images, views, 1)
    dataset[0]  # imports decoders
    began = time.process_time()
    rendered = [dataset[row][1] for row in range(size)]
    decoding = (time.process_time() - began) / size
    pixels = torch.cat([each for each in rendered if isinstance(each, torch.Tensor)]).to(check.device)
    resident = normalise(pixels, spec.preprocess)
    batches = 3 if check.tiny else 12
    alone = teacher_rate(runner, resident, batches, size).wall
    table = images.take(np.resize(np.arange(len(images)), size * (queue(runner) + batches + 1)))
    whole = embed_rate(runner, table, views, 1, batches, size).wall
    return {
        "rate": whole,
        "teacher_alone": alone,
        "share": whole / alone,
        "workers": check.workers,
        "one_worker_brings": 1 / decoding,
        "workers_to_keep_up": alone * decoding,
    }


def captions(check: Check, name: str, precision: str) -> dict[str, Any]:
    """Captions a second from words, and of the teacher alone on tokens in memory."""
    spec, module = load_teacher(check.teacher(name), "text")
    size = 4 if check.tiny else 1024
    runner = Runner(spec, module, check.device, precision, size, 0)
    texts = scan(str(check.data)).train.require_captions().select(["text"])
    rows = min(len(texts), 8 * size if check.tiny else 32 * size)
    for _ in range(2):  # the first time, each length of captions is a shape for which the GPU has no kernels yet
        began = time.perf_counter()
        list(embed_texts(runner, texts, [Part(0, 0, rows)], range(1), "embed"))
    whole = rows / (time.perf_counter() - began)
    tokenizer = TokenizerSpec(**spec.tokenizer)
    tokens = tokenize(tokenizer, texts.column(0).slice(0, rows).to_pylist())
    order = np.argsort(tokens.lengths, kind="stable")
    chosen = [order[start : start + size] for start in range(0, rows, size)]
    batches = [tokens.take(each).pad(tokenizer.pad_id).to(check.device) for each in chosen]
    began = time.perf_counter()
    for finish in [runner.start(batch) for batch in batches]:
        finish()
    alone = rows / (time.perf_counter() - began)
    return {"rate": whole, "teacher_alone": alone, "share": whole / alone}


def quickstart(check: Check) -> None:
    """From nothing to the table."""
    check.results.measure("quickstart", "end to end", 1 if check.tiny else 75, lambda: whole_way(check))


def whole_way(check: Check) -> dict[str, Any]:
    from dataclasses import replace

    from clip_distill.verbs import run
    from clip_distill.walkthrough import flow

    budget = flow.Budget()
    if check.tiny:
        budget = replace(budget, photos=96, val_photos=12, teacher_epochs=1, image_samples=96, text_samples=256)
    out = check.root / "quickstart"
    began = time.monotonic()
    flow.run(out, None, None, 0, budget, run)
    result = read_json(out / "result.json")
    kept = {row["name"]: row["kept"]["mean_recall"] for row in result["rows"]}
    steps = {name: round(seconds, 1) for name, seconds in result["seconds"].items()}
    return {"seconds": time.monotonic() - began, "both_students_keep": kept["both students"], "steps": steps}
