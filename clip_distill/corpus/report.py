"""What a scan found, what it left out, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Skips:
    """Reason → how many were left out for it, and the first of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, where)

    def lines(self) -> list[str]:
        """One line a reason, the most frequent first."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        # a name that is not Unicode holds surrogates, which no terminal prints
        firsts = {reason: where.encode("utf-8", "backslashreplace").decode() for reason, where in self.examples.items()}
        return [f"  skipped {count:,}: {reason} (first: {firsts[reason]})" for reason, count in ranked]


@dataclass
class SplitReport:
    """The report of one split.

    Args:
        images: Photos found.
        captions: Captions kept, duplicates included.
        duplicates: Captions that repeat an earlier one, letter by letter.
        captions_without_photo: Captions that name a photo which is not there, or which several photos fit.
        photos_without_captions: Photos that no caption names.
        skipped_files: Files and folders left out.
        skipped_captions: Captions left out.
        missing: Parts of the documented folder that are not there.
        notes: Other things worth knowing.
    """

    images: int = 0
    captions: int = 0
    duplicates: int = 0
    captions_without_photo: int = 0
    photos_without_captions: int = 0
    skipped_files: Skips = field(default_factory=Skips)
    skipped_captions: Skips = field(default_factory=Skips)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self, split: str) -> list[str]:
        repeated = f" ({self.duplicates:,} duplicates)" if self.duplicates else ""
        lines = [f"{split}: {self.images:,} images", *self.skipped_files.lines()]
        lines += [f"{split}: {self.captions:,} captions{repeated}", *self.skipped_captions.lines()]
        if self.captions_without_photo:
            lines.append(f"  {self.captions_without_photo:,} captions of a photo that is not there")
        if self.photos_without_captions and self.captions:
            lines.append(f"  {self.photos_without_captions:,} photos without captions")
        return lines + [f"  {note}" for note in self.notes] + [f"  missing: {part}" for part in self.missing]


@dataclass
class Report:
    """The report of a scan."""

    train: SplitReport = field(default_factory=SplitReport)
    val: SplitReport = field(default_factory=SplitReport)

    def lines(self) -> list[str]:
        """For people."""
        return self.train.lines("train") + self.val.lines("val")

    def as_dict(self) -> dict[str, Any]:
        """For programs: plain dictionaries, lists and numbers."""
        return dataclasses.asdict(self)
