"""`clip-distill quickstart`: the whole way in minutes."""

from __future__ import annotations

from typing import Literal

from clip_distill.system.arguments import Place, spelt
from clip_distill.system.errors import InvalidValue

READS = ()  # it says first what else it needs
EXAMPLES = """\
  # offline, about four minutes on two cores: draws photos, trains a teacher, distils two students from it
  clip-distill quickstart
  # an image student from a folder of photos, and nothing else
  clip-distill quickstart --photos PHOTOS --teacher ViT-B-32/openai --out quickstart-mine
  # a text student from a file of sentences (.txt, .jsonl, .tsv, .csv, .parquet)
  clip-distill quickstart --texts sentences.txt --teacher ViT-B-32/openai --out quickstart-mine
  # a text student from the teacher alone: from texts made up of the words that it knows
  clip-distill quickstart --teacher ViT-B-32/openai --tower text --out quickstart-words
  # both, on photos and their captions, with recall measured
  clip-distill quickstart --data DATA --teacher ViT-B-32/openai --out quickstart-mine

Every step is shown as the command that does it alone. Running the same command again keeps the photos, the teacher and
its embeddings, and trains the students anew."""


def quickstart(
    out: Place = "quickstart",
    data: Place | None = None,
    photos: Place | None = None,
    texts: Place | None = None,
    teacher: str | None = None,
    tower: Literal["image", "text", "both"] = "both",
    seed: int = 0,
) -> None:
    """Go the whole way once: embed with a teacher, fit the students that the data allows, evaluate them, export.

    Args:
        out: Folder for everything that is made.
        data: Folder in the documented layout (image/, COCO/val2017/, COCO/annotations/, CC/). By default small scenes
            are drawn, with captions.
        photos: In place of data, photos: a folder with folders, a table (.parquet), a saved dataset, or a .tar.
        texts: In place of data, a file of sentences: .txt (one a line), .jsonl, .tsv, .csv, .json, .parquet.
        teacher: The teacher's name, as for embed; goes with data, photos and texts. By default a small CLIP is trained
            on the scenes.
        tower: Whose student to make. For text, a teacher needs no data: its student learns from texts made up of the
            teacher's own words.
        seed: Of the scenes, the teacher and the students.

    Raises:
        Error: Data without a teacher, or a teacher without data; nothing is found; or `out` holds something else.
    """
    from pathlib import Path

    from clip_distill.verbs import run
    from clip_distill.walkthrough import flow
    from clip_distill.walkthrough.material import Material

    towers = ("image", "text") if tower == "both" else (tower,)
    none_given = data is photos is texts is None
    words = none_given and teacher is not None and tower == "text"
    given = Material(spelt(data), spelt(photos), spelt(texts), words, towers)
    own = words or not none_given
    if own != (teacher is not None):
        found = f"data={given.data!r}, photos={given.photos!r}, texts={given.texts!r} and teacher={teacher!r}"
        raise InvalidValue(
            "expected --teacher and one of --data, --photos and --texts (or --tower text, which needs none), or none "
            f"of them (which draws its own), found {found}"
        )
    if data is not None and (photos is not None or texts is not None):
        raise InvalidValue("expected either --data, or --photos and --texts, found both")
    flow.run(Path(out), given if own else None, teacher, seed, flow.REAL if own else flow.Budget(), run)
