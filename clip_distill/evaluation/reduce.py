"""`clip-distill store reduce`: fewer numbers a photo, by one map for both towers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.corpus.layout import Sources
from clip_distill.system.arguments import Place, spelt
from clip_distill.system.errors import InvalidValue
from clip_distill.system.talk import progress, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clip_distill.evaluation.retrieval import Benchmark
    from clip_distill.store.table import Store

EXAMPLES = """\
  # what would be kept, at each width; nothing is written
  clip-distill store reduce --store stores/b32 --data DATA
  # a store of 128 numbers a sample; students that train on it are as narrow
  clip-distill store reduce --store stores/b32 --data DATA --dim 128 --out stores/b32-128
  clip-distill fit --tower image --data DATA --store stores/b32-128 --out runs/image"""

WIDTHS = (1024, 768, 512, 384, 256, 192, 128, 96, 64, 32)
BYTES = {"float32": 4.0, "int8": 1.0, "1 bit": 1 / 8}  # of one number
RECALLS = {"t2i_r10": "t2i@10", "i2t_r10": "i2t@10", "mean_recall": "recall"}
TOWERS = ("image", "text")
SAMPLE = 2000  # rows of a tower to compare neighbours of, where no data is named


def reduce(
    store: Place,
    dim: int | None = None,
    out: Place | None = None,
    data: Place | None = None,
    seed: int = 0,
    shard_rows: int = 8192,
    sources: Sources = Sources(),  # noqa: B008 - frozen, so one instance serves all calls
) -> list[dict[str, Any]]:
    """Fit one orthogonal map to fewer numbers, for both towers, say what each width keeps, and write a reduced store.

    Args:
        store: What `embed` wrote. The map is fitted on its training tables, or on those of validation.
        dim: Numbers a sample in the new store. Without it, and `out`, nothing is written.
        out: Folder to write: a store of its own, with the map in reduce.safetensors.
        data: The data the store was made from: recall is measured on its validation captions. Without it, only how many
            of each sample's ten nearest stay.
        seed: Of the random turn that gives every number an equal share.
        shard_rows: Rows per shard.
        sources: As for embed, beside `data` or instead of it: other places for parts of the data.

    Returns:
        For each width and kind of number: `dim`, `numbers`, `bytes`, and what it keeps.

    Raises:
        Error: There is nothing to fit a map on, `dim` is not below the store's width, or `out` holds another store.
    """
    from clip_distill.store.reduce import directions, one_teacher, tables_of, write_reduced
    from clip_distill.towers.reduction import Reduction, map_to

    if (dim is None) != (out is None):
        raise InvalidValue(f"expected --dim and --out, or neither, found --dim {dim} and --out {out}")
    root = str(spelt(store))
    tables = tables_of(root)
    teacher = one_teacher(root, tables)
    found = directions([t for (_, split), t in tables.items() if split == "train"] or list(tables.values()))
    if dim is not None and not 1 <= dim < len(found):
        raise InvalidValue(f"--dim: expected 1 up to {len(found) - 1}, below the teacher's width, found {dim}")
    widths = {len(found), *(width for width in WIDTHS if width < len(found))} | ({dim} if dim else set())
    report = _kept(_measured(tables, _benchmark(data, sources, tables)), found, sorted(widths, reverse=True), seed)
    _show(report, root)
    if dim is not None and out is not None:
        reduction = Reduction(map_to(dim, found, seed), teacher["name"], teacher["weights_sha256"])
        write_reduced(Path(out), tables, reduction, shard_rows)
        say(f"{out}: {dim} numbers a sample in place of {len(found)}; the map is in reduce.safetensors")
    return report


@dataclass(frozen=True)
class Measured:
    """What the widths are compared on: embeddings by tower, of length 1, and each caption's photo, where known."""

    rows: dict[str, NDArray[Any]]
    image_of_caption: Any = None


def _benchmark(data: Place | None, sources: Sources, tables: dict[tuple[str, str], Store]) -> Benchmark | None:
    """Photos and captions to validate on, as far as the store has the photos; None where no data is named.

    Raises:
        InvalidValue: The store lacks a validation table, or some captions.
    """
    import pyarrow as pa

    from clip_distill.corpus.layout import scan
    from clip_distill.evaluation.retrieval import Benchmark

    if data is None and sources == Sources():
        return None
    val = scan(spelt(data), sources).val
    images, captions = val.require_images(), val.require_captions()
    if not {("image", "val"), ("text", "val")} <= tables.keys():
        raise InvalidValue("--data: expected a store with both validation tables to measure recall on; leave it out")
    benchmark = Benchmark.of(images.filter(pa.array(tables["image", "val"].find(images.column("id")) >= 0)), captions)
    lacking = int((tables["text", "val"].find(benchmark.captions) < 0).sum())
    if lacking:
        raise InvalidValue(f"--data: expected captions that the store has, found {lacking} others; embed this data")
    return benchmark


def _measured(tables: dict[tuple[str, str], Store], benchmark: Benchmark | None) -> Measured:
    """The benchmark's embeddings; without one, of up to 2,000 rows of each tower, of validation where there are any."""
    import numpy as np

    from clip_distill.store.reduce import unit

    if benchmark is not None:
        image, text = tables["image", "val"], tables["text", "val"]
        photos = unit(image.embeddings(image.find(benchmark.images.column("id"))))
        captions = unit(text.embeddings(text.find(benchmark.captions)))
        return Measured({"image": photos, "text": captions}, benchmark.image_of_caption)
    rows = {}
    for (tower, split), table in tables.items():
        if split == "val" or tower not in rows:
            places = np.linspace(0, len(table) - 1, min(len(table), SAMPLE)).astype(np.int64)
            rows[tower] = unit(table.embeddings(places))
    return Measured(rows)


def _kept(measured: Measured, found: NDArray[np.float64], widths: list[int], seed: int) -> list[dict[str, Any]]:
    """What each width, with each kind of number, keeps."""
    import numpy as np
    import torch

    from clip_distill.evaluation.recall import neighbour_overlap, retrieval_metrics
    from clip_distill.store.reduce import int8, one_bit, unit
    from clip_distill.towers.reduction import map_to

    kinds = {"float32": np.asarray, "int8": int8, "1 bit": one_bit}
    report = []
    for dim, (numbers, rounded) in progress(list(itertools.product(widths, kinds.items())), desc="widths"):
        map = map_to(dim, found, seed)
        small = {tower: torch.from_numpy(rounded(unit(rows @ map))) for tower, rows in measured.rows.items()}
        kept: dict[str, Any] = {"dim": dim, "numbers": numbers, "bytes": math.ceil(dim * BYTES[numbers])}
        for tower, rows in measured.rows.items():
            kept[f"{tower}_neighbours"] = 100 * neighbour_overlap(torch.from_numpy(rows), small[tower])
        if measured.image_of_caption is not None:
            metrics = retrieval_metrics(small["image"], small["text"], measured.image_of_caption)
            kept |= {name: metrics[name] for name in RECALLS}
        report.append(kept)
    return report


def _show(report: list[dict[str, Any]], root: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shares = [tower for tower in TOWERS if f"{tower}_neighbours" in report[0]]
    recalls = {name: title for name, title in RECALLS.items() if name in report[0]}
    heads = ["dim", "as", "bytes", *(f"{tower} 10-NN" for tower in shares), *recalls.values()]
    table = Table(*heads, *["kept"][: len(recalls)], title=root, box=SIMPLE_HEAD)
    for row in report:
        cells = [str(row["dim"]), row["numbers"], f"{row['bytes']:,}"]
        cells += [f"{row[f'{tower}_neighbours']:.1f}%" for tower in shares] + [f"{row[name]:.1f}" for name in recalls]
        if recalls:
            cells.append(f"{100 * row['mean_recall'] / max(report[0]['mean_recall'], 1e-9):.1f}%")
        table.add_row(*cells)
    Console().print(table)
