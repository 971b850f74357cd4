"""What the GPU check measured, written as it comes: JSON, a table for people, a log and a picture."""

from __future__ import annotations

import datetime
import gc
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clip_distill.system.files import write_json

# The parts of the time that stages may take, so that the last one has its minute, too
STAGES = {"training": 32, "embed": 15, "memory": 15, "compile": 8, "quickstart": 30}


class Skip(Exception):
    """What a measurement raises that can't be made here; its text says why."""


class Results:
    """Records of measurements, and the time that is left for more.

    Args:
        out: Folder that is there.
        seconds: For all measurements, from now on.
        device: What is measured on.
    """

    def __init__(self, out: Path, seconds: float, device: str) -> None:
        self.out, self.seconds, self.device = out, seconds, torch.device(device)
        self.began, self.kept = time.monotonic(), 0.0
        self.records: list[dict[str, Any]] = []
        self.about = about(self.device)
        self.log(f"{self.about['device']}, torch {self.about['torch']}; {seconds:.0f} s")

    @property
    def left(self) -> float:
        """Seconds that the stage may still take."""
        return self.seconds - self.kept - (time.monotonic() - self.began)

    def keep_for(self, later: Sequence[str], stages: Sequence[str]) -> None:
        """Keep their part of the time for the stages that come later, of all that are asked for."""
        self.kept = self.seconds * sum(STAGES[each] for each in later) / sum(STAGES[each] for each in stages)

    def log(self, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        print(line, flush=True)
        with open(self.out / "gpu.log", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def measure(self, stage: str, name: str, needs: float, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure, unless the stage has less than `needs` left; what goes wrong is a result, too.

        Returns:
            The record: `stage`, `name`, and what the function returned, or `skipped`, or `failed`.
        """
        record: dict[str, Any] = {"stage": stage, "name": name}
        began = time.monotonic()
        if self.left < needs:
            record["skipped"] = f"needs about {needs:.0f} s, {max(0.0, self.left):.0f} s are left"
        else:
            try:
                record |= function()
            except Skip as why:
                record["skipped"] = str(why)
            except Exception as error:
                record["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                with open(self.out / "gpu.log", "a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)
            finally:
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            record["took_seconds"] = round(time.monotonic() - began, 2)
        self.records.append(record)
        facts = ", ".join(f"{key} {shown(value)}" for key, value in record.items() if key not in ("stage", "name"))
        self.log(f"{stage}: {name}: {facts}")
        self.write()
        return record

    def write(self) -> None:
        write_json(self.out / "gpu.json", {"about": self.about, "records": self.records})
        (self.out / "gpu.md").write_text(table(self.about, self.records), encoding="utf-8")

    def finish(self) -> None:
        """Draw the picture, where it can be drawn."""
        self.write()
        try:
            draw(self.records, self.out / "gpu.png")
        except ImportError as error:
            self.log(f"no picture ({error})")
        self.log(f"written to {self.out}")


def about(device: torch.device) -> dict[str, Any]:
    """What is measured on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(about: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """Markdown, a table a stage; columns are whatever its records have."""
    lines = [f"# {about['device']}", "", f"torch {about['torch']}, CUDA {about['cuda']}, {about['date']}"]
    for stage in STAGES:
        mine = [record for record in records if record["stage"] == stage]
        if not mine:
            continue
        columns = list(dict.fromkeys(key for record in mine for key in record if key != "stage"))
        lines += ["", f"## {stage}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(shown(record.get(key, '')) for key in columns)} |" for record in mine]
    return "\n".join(lines) + "\n"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Samples a second against the batch, a panel a tower, a line a way to train."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    mine = [record for record in records if record["stage"] == "training" and "rate" in record]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, tower in zip(axes, ("image", "text"), strict=True):
        ways = dict.fromkeys((record["mode"], record["precision"]) for record in mine if record["tower"] == tower)
        for way in ways:
            points = [
                (record["batch"], record["rate"])
                for record in mine
                if (record["tower"], record["mode"], record["precision"]) == (tower, *way)
            ]
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=" ".join(way))
        axis.set(xscale="log", yscale="log", title=tower, xlabel="batch", ylabel="samples a second")
        if ways:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
