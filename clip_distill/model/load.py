"""A name → a model that encodes: a run, a student's folder, an export, or any teacher's name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_distill.exports import OPEN_CLIP_FILE, TOWERS_FILE
from clip_distill.model.model import Model
from clip_distill.system.arguments import Place
from clip_distill.system.errors import InvalidValue, NotFound
from clip_distill.system.files import read_json
from clip_distill.system.registry import require_trust

if TYPE_CHECKING:
    from clip_distill.model.encoder import Encoder

TOWERS = ("image", "text")
TOWER_FILE = "tower.json"
CONFIG_FILE = "config.json"  # of transformers


def load(
    name: Place | None = None, *, image: Place | None = None, text: Place | None = None, device: str = "auto"
) -> Model:
    """Load a model that encodes images, texts or both.

    A name is a run's folder (or the `Run` that `fit` returned), a student's folder, a folder that `export` wrote (of
    ONNX files: torch is not imported), or a teacher's name as for `embed`: `ViT-B-32/openai`, `local-dir:PATH`,
    `hf-hub:ORG/REPO`, `transformers:PATH_OR_NAME`.

    Args:
        name: Where the towers are; a run of one tower gives a model of one.
        image: Where the image tower is, instead.
        text: Where the text tower is, instead.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        NotFound: There is no such folder.
        InvalidValue: It is neither, or image and text tower are of different teachers or widths.

    Example:
        >>> model = cd.load(RUN)
        >>> model.encode_text(["a dog", "一只狗"]).shape
        (2, 32)
    """
    if (name is None) == (image is None and text is None):
        raise InvalidValue(f"expected a name, or image and text, found name={name!r}, image={image!r}, text={text!r}")
    if name is not None:
        return Model(_encoders(os.fspath(name), None, device), os.fspath(name))
    encoders: dict[str, Encoder] = {}
    for tower, place in (("image", image), ("text", text)):
        if place is not None:
            encoders |= _encoders(os.fspath(place), tower, device)
    _require_one_space(encoders)
    return Model(encoders, " and ".join(os.fspath(place) for place in (image, text) if place is not None))


def _encoders(name: str, tower: str | None, device: str) -> dict[str, Encoder]:
    """The towers of one name; of them the wanted one, if one is.

    Raises:
        InvalidValue: The wanted one is not there.
    """
    folder = Path(name)
    if (folder / TOWERS_FILE).is_file():
        found: Mapping[str, Encoder] = _exported(folder, tower, device)
    elif (folder / CONFIG_FILE).is_file() and (folder / "model.safetensors").is_file():
        found = _transformers(folder, tower, device)
    elif folder.is_dir() and not (folder / OPEN_CLIP_FILE).is_file():
        found = _student(folder, device)
    else:
        found = _named(f"local-dir:{folder}" if folder.is_dir() else name, tower, device)
    if tower is not None and tower not in found:
        raise InvalidValue(f"{name}: expected the {tower} tower, found {', '.join(found)} alone")
    return {each: encoder for each, encoder in found.items() if tower in (None, each)}


def _exported(folder: Path, tower: str | None, device: str) -> dict[str, Encoder]:
    from clip_distill.model.in_file import FileEncoder

    info = read_json(folder / TOWERS_FILE)
    wanted = [each for each in TOWERS if each in info and tower in (None, each)]
    return {each: FileEncoder(folder, info, each, device) for each in wanted}


def _transformers(folder: Path, tower: str | None, device: str) -> dict[str, Encoder]:
    """What transformers loads by itself, or the towers that its configuration describes."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("model_type") != "clip_distill":
        return _named(f"transformers:{folder}", tower, device)
    from safetensors.torch import load_file

    from clip_distill.model.in_torch import TorchEncoder
    from clip_distill.towers.spec import TowerSpec

    state, found = load_file(folder / "model.safetensors"), {}
    for each in TOWERS:
        require_trust(str(folder / CONFIG_FILE), config[each])
        spec, prefix = TowerSpec(**config[each]), f"{each}_tower."
        module = spec.build().eval()
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        found[each] = TorchEncoder(spec, module, device)
    return dict(found)


def _student(folder: Path, device: str) -> dict[str, Encoder]:
    from clip_distill.model.in_torch import TorchEncoder
    from clip_distill.towers.spec import load_tower

    inner = folder / "student" if (folder / "student").is_dir() else folder
    places = [inner, *(inner / tower for tower in TOWERS)]
    students = [load_tower(place) for place in places if (place / TOWER_FILE).is_file()]
    if not students:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise NotFound(
            f"{folder}: expected a run's folder (student/{TOWER_FILE}, written when `fit` ends), a student's "
            f"({TOWER_FILE}) or an export's ({TOWERS_FILE} or {OPEN_CLIP_FILE}), found {there}"
        )
    return {spec.tower: TorchEncoder(spec, module, device) for spec, module in students}


def _named(name: str, tower: str | None, device: str) -> dict[str, Encoder]:
    from clip_distill.model.in_torch import TorchEncoder
    from clip_distill.teachers import load_teacher

    if os.sep in name and ":" not in name and not Path(name).parent.is_dir():
        raise NotFound(
            f"{name}: expected a folder or a teacher's name (ViT-B-32/openai, local-dir:PATH), found neither"
        )
    encoders: dict[str, Encoder] = {}
    for each in TOWERS:
        if tower in (None, each):
            encoders[each] = TorchEncoder(*load_teacher(name, each), device)  # type: ignore[arg-type]
    return encoders


def _require_one_space(encoders: Mapping[str, Any]) -> None:
    """Towers that are compared with each other must be of one teacher, as far as they say so."""
    widths = {tower: encoder.embed_dim for tower, encoder in encoders.items()}
    if len(set(widths.values())) > 1:
        raise InvalidValue(f"expected towers of one width, found {widths}: they are of different teachers")
    known = {tower: encoder.teacher for tower, encoder in encoders.items() if encoder.teacher}
    if len({teacher["weights_sha256"] for teacher in known.values()}) > 1:
        names = ", ".join(f"{tower}: {teacher['name']}" for tower, teacher in known.items())
        raise InvalidValue(f"expected towers of one teacher, found two ({names}): their embeddings can't be compared")
