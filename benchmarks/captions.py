"""Captions through an open_clip teacher's text tower: as `embed` does it, against open_clip's own tower, padded.

    python benchmarks/captions.py --data ../shared/flickr8k --teacher local-dir:../shared/teacher

Three ways with the same captions and batch size: open_clip's tower in the data's order, padded to the context length;
the same batches through ours, which does not compute what follows a caption's end; and `embed`, which sorts captions
by length and cuts each batch to its longest. Each round runs all, in turns, so that a busy machine slows all. How far
embeddings are from open_clip's is printed: for a causal teacher nothing but rounding. Other teachers gain nothing.
Shapes: N captions, L tokens, D embedding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clip_distill.corpus.layout import scan
from clip_distill.store.build import Part
from clip_distill.store.embed import Runner, embed_texts
from clip_distill.teachers import load_teacher
from clip_distill.teachers.open_clip import create, split_name
from clip_distill.tokens.encode import tokenize
from clip_distill.tokens.spec import TokenizerSpec
from clip_distill.towers.spec import pick_device

Way = Callable[[pa.Array], NDArray[np.float32]]


def padded(runner: Runner, captions: pa.Array) -> NDArray[np.float32]:
    """[N, D] of captions in their order, each batch [B, context length]."""
    tokenizer = TokenizerSpec(**runner.spec.tokenizer)
    tokens = tokenize(tokenizer, captions.to_pylist())
    blocks = []
    for start in range(0, len(captions), runner.batch_size):
        rows = np.arange(start, min(start + runner.batch_size, len(captions)))
        blocks.append(runner(tokens.take(rows).pad(tokenizer.pad_id, tokenizer.context_length).to(runner.device)))
    return np.concatenate(blocks)


def sorted_and_cut(runner: Runner, captions: pa.Array) -> NDArray[np.float32]:
    """[N, D] of captions, by the code of `embed`."""
    [(_, shard)] = embed_texts(runner, pa.table({"id": captions}), [Part(0, 0, len(captions))], range(1), "")
    embeddings: NDArray[np.float32] = shard.views[0]
    return embeddings


def spread(values: list[float]) -> str:
    return f"×{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def measure(ways: dict[str, Way], captions: pa.Array, warm: int, rounds: int) -> None:
    """Print each way's rate, how many times the first way's it is, and how far its embeddings are from those.

    Args:
        ways: Name → function of captions.
        captions: [N].
        warm: Captions to begin with: the first words, and the first batch of each size, cost more.
        rounds: How often all are run.
    """
    for way in ways.values():
        way(captions.slice(0, warm))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worked: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, NDArray[np.float32]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            began, cores = time.perf_counter(), time.process_time()
            made[name] = way(captions)
            seconds[name].append(time.perf_counter() - began)
            worked[name].append(time.process_time() - cores)
    first = next(iter(ways))
    for name in ways:
        rate = len(captions) / statistics.median(seconds[name])
        times = ", ".join(
            f"{spread([slow / fast for slow, fast in zip(taken[first], taken[name], strict=True)])} {kind}"
            for kind, taken in (("by the clock", seconds), ("by core time", worked))
        )
        difference = np.abs(made[name] - made[first]).max()
        print(f"{name:18} {rate:7,.0f} captions/s, {times}; largest difference {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for `clip-distill embed`")
    parser.add_argument("--teacher", required=True, help="an open_clip model, or a local-dir: of one")
    parser.add_argument("--captions", type=int, default=2048, help="that many unique training captions, spread evenly")
    parser.add_argument("--batch_size", type=int, default=64, help="as of embed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    spec, module = load_teacher(given.teacher, "text")
    name, weights = split_name(given.teacher)
    theirs = create(name, weights, spec.quick_gelu).text
    unique = scan(given.data).train.require_captions().column("text").unique()
    count = min(given.captions, len(unique))
    captions = unique.take(pa.array(np.linspace(0, len(unique), count, endpoint=False).astype(np.int64)))
    device = pick_device(given.device)
    runner = Runner(spec, module, device, batch_size=given.batch_size)
    plain = Runner(spec, theirs, device, batch_size=given.batch_size)
    print(
        f"{count:,} captions, batches of {given.batch_size}, {'causal' if spec.causal else 'not causal'} teacher, "
        f"{device}, torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; median "
        f"(least–most) of {given.rounds} rounds"
    )
    ways: dict[str, Way] = {
        "open_clip, padded": partial(padded, plain),
        "ours, padded": partial(padded, runner),
        "embed": partial(sorted_and_cut, runner),
    }
    measure(ways, captions, 4 * given.batch_size, given.rounds)


if __name__ == "__main__":
    main()
