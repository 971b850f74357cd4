"""Which towers answer: a student's, and its teacher's for those that it has not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from clip_distill.exports import EXPORT_FILE, TOWERS_FILE
from clip_distill.model.load import load
from clip_distill.model.model import Model
from clip_distill.system.errors import InvalidValue
from clip_distill.system.files import read_json, sha256

TOWERS = ("image", "text")


def both_towers(
    names: Mapping[str, str | None], teacher: str | None, device: str
) -> tuple[Model, dict[str, str | None]]:
    """A model that reads photos and words, and where each tower is from, None for a teacher.

    Args:
        names: `student`, which may be both, `image` and `text` → place.
        teacher: Its name, for what no student has; by default the one that a student names.
        device: Where it runs.

    Raises:
        InvalidValue: A tower is lacking, and no teacher is known.
    """
    places = {tower: names[tower] for tower in TOWERS}
    known = None
    if (student := names["student"]) is not None:
        found = load(student, device=device)
        known = found.teacher
        if set(found.towers) == set(TOWERS) and not any(places.values()):
            return found, dict.fromkeys(TOWERS, student)
        places |= {tower: places[tower] or student for tower in found.towers}
    for place in places.values():
        known = known or (load(place, device=device).teacher if place is not None else None)
    teacher = teacher or known
    lacking = [tower for tower, place in places.items() if place is None]
    if lacking and teacher is None:
        raise InvalidValue(
            f"expected a student of both towers, or --teacher for the {' and '.join(lacking)} tower: --student DIR, a "
            "folder that `clip-distill export` wrote"
        )
    return load(image=places["image"] or teacher, text=places["text"] or teacher, device=device), places


def identity(model: Model, place: str | None) -> str:
    """What the vectors depend on: the image tower's weights, as SHA-256."""
    folder = Path(place) if place is not None else None
    if folder is None or not folder.is_dir():
        return str(model.encoder("image").teacher["weights_sha256"])
    if (folder / TOWERS_FILE).is_file():
        return sha256(folder / read_json(folder / TOWERS_FILE)["image"]["file"])
    inner = folder / "student" if (folder / "student").is_dir() else folder
    whole = hashlib.sha256()
    for file in sorted(inner.rglob("*.safetensors")):
        whole.update(sha256(file).encode())
    return whole.hexdigest()


def score_of(place: str | None) -> float | None:
    """The score from which on answers are good matches, where `drop-in` wrote one into the text tower's export."""
    file = Path(place) / EXPORT_FILE if place is not None else None
    if file is None or not file.is_file():
        return None
    found = read_json(file).get("score")
    return float(found["threshold"]) if found else None
