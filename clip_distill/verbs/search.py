"""`clip-distill search`: index folders of photos with a student, and ask."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip_distill.system.arguments import Place, call, listed, places_first, spelt
from clip_distill.system.errors import AlreadyExists, InvalidValue, MissingPackage
from clip_distill.system.talk import say

if TYPE_CHECKING:
    from clip_distill.photosearch.engine import Engine

READS = ("photos", "student", "image_student", "text_student")  # places that must be there
EXAMPLES = """\
  # index a folder with a shipped student, and open its page
  clip-distill search PHOTOS --student shipped
  # several folders; an image student alone asks by its teacher's text tower
  clip-distill search PHOTOS MORE --student runs/image
  # from the terminal
  clip-distill search PHOTOS --student shipped --query '2:dog on a beach -cat' --top 5
  # bring the index up to date, and no more: from a nightly job, for instance
  clip-distill search PHOTOS --student shipped --index_only
  # indexed by a Ray cluster
  clip-distill search PHOTOS --student shipped --index_only --engine ray --address auto
  # for others in this network; the printed address has the token that they need
  clip-distill search PHOTOS --student shipped --host 0.0.0.0"""


class Answers(list[dict[str, Any]]):
    """What was found: a record a photo, nearest first; `show` prints it.

    Args:
        found: The records.
        as_json: Print them as JSON.
    """

    def __init__(self, found: Sequence[dict[str, Any]] = (), as_json: bool = False) -> None:
        super().__init__(found)
        self.as_json = as_json

    def show(self) -> None:
        """Print them on standard output."""
        if self.as_json:
            print(json_format.dumps(self, ensure_ascii=False, indent=1))
        elif self:
            print("\n".join(f"{each['score']:.3f}  {each['path']}" for each in self))


def command(argv: Sequence[str]) -> Any:
    """The verb with its folders as words: `clip-distill search PHOTOS… [options]`."""
    return call("search", search, EXAMPLES, places_first("photos", argv), READS)


def search(
    photos: list[Place],
    student: Place | None = None,
    image_student: Place | None = None,
    text_student: Place | None = None,
    teacher: str | None = None,
    beside: str | None = None,
    index: Place | None = None,
    index_only: bool = False,
    query: str | None = None,
    top: int = 10,
    json: bool = False,
    dim: int | None = None,
    quantize: Literal["float16", "int8"] = "float16",
    exif: bool | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    token: str | None = None,
    open: bool = True,
    device: str = "auto",
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> Answers:
    """Search your photos by words or by a photo: keep an index of folders, and serve a page at 127.0.0.1.

    The index follows the folders: what is new, changed, moved or gone since is all that is read. Killed at any moment,
    it goes on from there.

    Args:
        photos: Folders of photos, and folders within them; words before all options.
        student: An export, or a run, of both towers or of one.
        image_student: An export or a run of the image tower, where student is not both.
        text_student: An export or a run of the text tower, where student is not both.
        teacher: Whose towers stand in for those that no student has; by default the student's.
        beside: A teacher's name, whose order the page shows beside the student's. Its index is made first where it is
            not there yet, which takes the teacher's time.
        index: Folder of the index; by default one in the cache, for these folders and this student.
        index_only: Bring the index up to date, and end.
        query: Ask this, print the answers, and end: words with weights and signs, "2:dog -cat".
        top: Answers to print.
        json: Print them as JSON.
        dim: Numbers of a vector, fewer than the student's: less memory, disk and time for a little accuracy. Which
            ones, the index learns from up to 2,048 of the photos at its first start.
        quantize: Numbers of a vector on disk: float16, or int8, which takes half.
        exif: Turn photos as their EXIF orientation says before they are embedded; by default as the student was
            trained (embed --exif). Pages show them upright in any case.
        host: Where to listen. Elsewhere than on loopback, every request must bring a token.
        port: By default 8321, or any that is free.
        token: The token; by default one is made where it is needed.
        open: Open the page in a browser.
        device: auto, cpu, cuda, cuda:1, mps.
        engine: ray indexes by the workers of a Ray cluster, which see the same photos under the same paths.
        address: Of the cluster: auto for the one that this machine belongs to; by default one of this machine alone.

    Returns:
        The answers to `query`; nothing without one.

    Raises:
        Error: A folder is not there, or no model is named that can read photos and words.

    Example:
        >>> found = cd.search([PHOTOS], teacher=TEACHER, index=OUT, query="a red circle", top=3)
        >>> len(found), sorted(found[0])[:3]
        (3, ['good', 'height', 'id'])
    """
    folders = listed(photos)
    if not folders:
        raise InvalidValue("expected at least one folder: clip-distill search PHOTOS --student DIR")
    names = {"student": spelt(student), "image": spelt(image_student), "text": spelt(text_student)}
    ray = (address,) if engine == "ray" else None
    made = make_engine(folders, names, teacher, spelt(index), dim, quantize, exif, device, ray)
    if beside is not None:
        other = dict.fromkeys(names)
        place = None if index is None else f"{spelt(index)}-beside"
        made.beside = make_engine(folders, other, beside, place, dim, quantize, exif, device)
        say(f"beside, {beside}: {made.beside.bring_up_to_date().line()}")
    if query is None and not index_only:
        try:
            from clip_distill.photosearch.serve import serve
        except ImportError as error:
            message = f"the page needs {error.name}; install it with: pip install 'clip-distill[search]'"
            raise MissingPackage(message) from error
        serve(made, host, port, token, open)
        return Answers()
    try:
        state = made.bring_up_to_date()
        say(state.line(), *state.skips.lines(), *(f"  unread: {path} ({why})" for path, why in made.index.unread()))
    except AlreadyExists as error:
        if query is None:
            raise
        say(f"answered by what the index has now: {error}")
    if query is None:
        return Answers()
    return Answers(made.ask(query, count=top), json)


def make_engine(
    folders: list[str],
    names: dict[str, str | None],
    teacher: str | None,
    index: str | None,
    dim: int | None,
    quantize: Literal["float16", "int8"],
    exif: bool | None,
    device: str,
    ray: tuple[str | None] | None = None,
) -> Engine:
    """Model and index together.

    Args:
        folders: Of photos.
        names: `student`, `image`, `text` → place.
        teacher: Its name.
        index: Folder.
        dim: Numbers of a vector; None takes the student's.
        quantize: Numbers of a vector on disk.
        exif: Whether photos are turned before they are embedded; None leaves it to the student.
        device: Where the model runs.
        ray: The address of the cluster whose workers embed; None embeds here.
    """
    import os

    from clip_distill.photosearch.engine import Engine
    from clip_distill.photosearch.index import Index
    from clip_distill.photosearch.models import both_towers, identity, score_of
    from clip_distill.photosearch.narrow import narrowed
    from clip_distill.pixels.plain import EXIF
    from clip_distill.system.files import cache_folder

    model, places = both_towers(names, teacher, device)
    encoder = model.encoder("image")
    if exif is not None:
        encoder.preprocess = encoder.preprocess | {EXIF: exif}
    upright = bool(encoder.preprocess.get(EXIF, False))
    folders = sorted({os.path.abspath(folder) for folder in folders})
    if dim is not None and not 1 <= dim <= model.embed_dim:
        raise InvalidValue(f"--dim: expected 1 up to the student's {model.embed_dim}, found {dim}")
    made_by = {"student": identity(model, places["image"]), "dim": dim or model.embed_dim, "upright": upright}
    if index is None:
        import hashlib

        key = json_format.dumps([folders, made_by, quantize], sort_keys=True)
        index = str(Path(cache_folder()) / "search" / hashlib.sha256(key.encode()).hexdigest()[:16])
    kept = Index(Path(index), made_by, quantize)
    score = score_of(places["text"])
    if kept.dim != model.embed_dim:
        model, score = narrowed(model, kept, folders), None  # it is one of all numbers
    made = Engine(model, kept, folders, score)
    if ray is not None:
        from clip_distill.photosearch.spread import over_ray

        image = places["image"]
        where = os.path.abspath(image) if image is not None and Path(image).is_dir() else image
        made.embed = over_ray(str(where or teacher or model.teacher), device, *ray)
    return made
