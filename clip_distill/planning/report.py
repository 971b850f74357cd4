"""A plan from its measures: what was counted, measured, and extrapolated from both; as JSON and as tables."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from clip_distill.planning.embedding import EmbedJob, EmbedMeasures
from clip_distill.planning.estimate import FitSeconds, Rate, fit_seconds, run_bytes, shard_buffer_bytes, table_bytes
from clip_distill.planning.training import FitJob, FitMeasures
from clip_distill.system.processes import available_bytes
from clip_distill.system.report import Report
from clip_distill.towers.spec import pick_device

FOREVER = 1000  # epochs, if neither max_epochs nor max_steps is given to Lightning
MIN_WIDTH = 100  # a table cut to a pipe's 80 columns would lose digits
NOTES = (
    "Times hold for this machine as it was while measuring: other programs slow down both, and photos that the disk "
    "has yet to read are slower than those it has just read.",
    "Peak memory is what the process and its workers took while measuring, plus a full shard's buffers for embed.",
    "Peak memory was compared with runs of minutes, not of hours: leave some to spare.",
    "The largest batch is tried until out of memory on CUDA, and extrapolated from two small batches on the CPU; "
    "captions count at their full context length.",
    "Disk is exact for embeddings; ids and tokens are extrapolated from a sample.",
    "fit was measured on one device; more divide its time at best.",
)


def make_report(job: EmbedJob, embed: EmbedMeasures, fits: list[tuple[FitJob, FitMeasures]]) -> dict[str, Any]:
    """Everything that a plan says, as plain data; seconds and bytes throughout."""
    return {
        "machine": machine(job.device),
        "embed": {
            "options": asdict(job),
            "counted": {"items": embed.items},
            "measured": {
                "stages": {name: speed(rate) for name, rate in embed.stages.items()},
                "tables": {name: speed(rate) for name, rate in embed.embedding.items()},
                "readable": embed.readable,
                "skipped": embed.skipped,
                "tokens_per_caption": embed.tokens_per_caption,
                "startup_seconds": embed.startup,
                "peak_bytes": embed.peak,
                "device_peak_bytes": embed.device_peak,
            },
            "extrapolated": extrapolate_embed(job, embed),
        },
        "fit": {each.recipe.tower: fit_report(each, measures) for each, measures in fits},
        "notes": list(NOTES),
    }


def machine(device: str) -> dict[str, Any]:
    """What the plan holds for."""
    found = pick_device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else platform.processor() or platform.machine()
    result = {"device": str(found), "name": name, "cores": os.cpu_count(), "available_bytes": available_bytes()}
    if found.type == "cuda":
        result["device_free_bytes"] = torch.cuda.mem_get_info(found)[0]
    return result


def speed(rate: Rate) -> dict[str, float]:
    return {"items": rate.items, "seconds": rate.seconds, "per_second": rate.per_second}


def extrapolate_embed(job: EmbedJob, found: EmbedMeasures) -> dict[str, Any]:
    """Seconds and bytes of every table, and their sums."""
    tables: dict[str, Any] = {}
    buffers = 0
    for name, made_by in found.manifests.items():
        items = found.items[name]
        rows = round(items * found.readable) if made_by.tower == "image" else items
        tokens = rows * found.tokens_per_caption
        parts = table_bytes(made_by, rows, job.shard_rows, found.id_bytes[name], tokens, found.token_bytes)
        seconds = found.embedding[name].seconds_for(items)
        buffers = max(buffers, shard_buffer_bytes(made_by, min(rows, job.shard_rows)))
        tables[name] = {"rows": rows, "views": made_by.views, "dim": made_by.dim, "seconds": seconds}
        tables[name] |= {"bytes": sum(parts.values()), "bytes_by_part": parts}
    return {
        "tables": tables,
        "seconds": found.startup + sum(table["seconds"] for table in tables.values()),
        "bytes": sum(table["bytes"] for table in tables.values()),
        "peak_bytes": found.peak + buffers,
        "largest_batch": found.largest,
    }


def fit_report(job: FitJob, found: FitMeasures) -> dict[str, Any]:
    """Measured and extrapolated numbers of one student's run."""
    steps = steps_per_epoch(found.steps, job.trainer.get("limit_train_batches"))
    seconds = run_seconds(job, found, steps)
    return {
        "options": {"recipe": asdict(job.recipe), "views": job.views, "augment": job.augment},
        "counted": {"parameters": found.parameters, "val_rows": found.val_rows},
        "measured": {
            "step": speed(found.step),
            "validation": speed(found.validation),
            "metrics_seconds": found.metrics,
            "startup_seconds": found.startup,
            "peak_bytes": found.peak,
            "device_peak_bytes": found.device_peak,
        },
        "extrapolated": {
            "rows": found.rows,
            "steps_per_epoch": steps,
            "epoch_seconds": seconds.epoch,
            "validation_seconds": seconds.validation,
            "seconds": found.startup + seconds.total,
            "bytes": run_bytes(found.parameters, found.trainable, job.recipe.ema > 0),
            "largest_batch": found.largest,
        },
    }


def steps_per_epoch(steps: int, limit: int | float | None) -> int:
    """Steps that Lightning's `limit_train_batches` leaves: a number of them, or a share."""
    if limit is None:
        return steps
    return min(steps, limit) if isinstance(limit, int) else max(1, int(steps * limit))


def run_seconds(job: FitJob, found: FitMeasures, steps: int) -> FitSeconds:
    """A whole run's times, by its Trainer's options."""
    options = job.trainer
    max_steps = options.get("max_steps", -1)
    epochs = options.get("max_epochs")
    if epochs is None:
        epochs = FOREVER if max_steps < 0 else -1
    return fit_seconds(
        found.step,
        found.validation,
        found.metrics,
        steps=steps,
        val_rows=found.val_rows,
        epochs=epochs,
        max_steps=max_steps,
        every=options.get("check_val_every_n_epoch") or 1,
    )


class PlanReport(Report):
    """What `plan` states: `print(report)` is the tables, `report.to_dict()` has every number."""

    def show(self, console: Console | None = None) -> None:
        console = console or Console()
        show(self.numbers, console)
        if self.saved is not None:
            console.print(f"written to {self.saved}", highlight=False, soft_wrap=True)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    console.width = max(console.width, MIN_WIDTH)
    where = report["machine"]
    free = f"{size(where['available_bytes'])} of memory free"
    console.print(f"\n{where['device']} ({where['name']}), {where['cores']} cores, {free}", highlight=False)
    console.print(measured_table(report), embed_table(report), sep="")
    if report["fit"]:
        console.print(fit_table(report))
    for reason, count in report["embed"]["measured"]["skipped"].items():
        console.print(f"of the sample's photos, {count} can't be read: {reason}", highlight=False)
    for note in report["notes"]:
        console.print(f"• {note}", highlight=False)


def measured_table(report: dict[str, Any]) -> Table:
    """Speeds as they were measured."""
    table = _table("Measured", "stage", "items", "in", "speed")
    embed = report["embed"]["measured"]
    rows = [(name, rate, "/s") for name, rate in embed["stages"].items()]
    rows += [(f"embed {name}, as a whole", rate, "/s") for name, rate in embed["tables"].items()]
    for tower, fit in report["fit"].items():
        rows.append((f"fit, {tower} student, steps", fit["measured"]["step"], " steps/s"))
        rows.append((f"fit, {tower} student, validation", fit["measured"]["validation"], "/s"))
    for name, rate, unit in rows:
        table.add_row(name, f"{rate['items']:,}", f"{rate['seconds']:.2f} s", f"{rate['per_second']:,.1f}{unit}")
    return table


def embed_table(report: dict[str, Any]) -> Table:
    """A row per table of the store, and the whole."""
    table = _table("Extrapolated: embed", "table", "rows × views × D", "time", "disk", "peak memory", "largest batch")
    found = report["embed"]["extrapolated"]
    for name, each in found["tables"].items():
        shape = f"{each['rows']:,} × {each['views']} × {each['dim']}"
        largest = f"{found['largest_batch'][name.split('-')[0]]:,}"
        table.add_row(name, shape, duration(each["seconds"]), size(each["bytes"]), "", largest)
    peak = memory(found["peak_bytes"], report["embed"]["measured"]["device_peak_bytes"])
    table.add_row("all, with start-up", "", duration(found["seconds"]), size(found["bytes"]), peak, "")
    return table


def fit_table(report: dict[str, Any]) -> Table:
    """A row per student."""
    columns = ("student", "parameters", "epoch", "validation", "whole run", "disk", "peak memory", "largest batch")
    table = _table("Extrapolated: fit", *columns)
    for tower, fit in report["fit"].items():
        found, measured = fit["extrapolated"], fit["measured"]
        times = (duration(found[key]) for key in ("epoch_seconds", "validation_seconds", "seconds"))
        peak = memory(measured["peak_bytes"], measured["device_peak_bytes"])
        parameters = f"{fit['counted']['parameters'] / 1e6:.2f}M"
        table.add_row(tower, parameters, *times, size(found["bytes"]), peak, f"{found['largest_batch']:,}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def duration(seconds: float) -> str:
    """Seconds for people: 12.3 s, 4.5 min, 3.2 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def size(count: float) -> str:
    """Bytes for people: 12.3 KiB, 4.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def memory(host: int, device: int | None) -> str:
    return size(host) if device is None else f"{size(host)} + {size(device)} of CUDA's"
