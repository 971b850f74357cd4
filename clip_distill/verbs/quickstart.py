"""`clip-distill quickstart`: the whole way in minutes."""

from __future__ import annotations

from clip_distill.system.arguments import Place, spelt

EXAMPLES = """\
  # offline, about four minutes on two cores: draws photos, trains a teacher, distils two students from it
  clip-distill quickstart
  # the same steps on your own photos and captions, with a short training
  clip-distill quickstart --data DATA --teacher ViT-B-32/openai --out quickstart-mine

Every step is shown as the command that does it alone. Running the same command again keeps the photos, the teacher and
its embeddings, and trains the students anew."""


def quickstart(out: Place = "quickstart", data: Place | None = None, teacher: str | None = None, seed: int = 0) -> None:
    """Go the whole way once: embed with a teacher, fit an image and a text student, evaluate all pairings, export.

    Args:
        out: Folder for everything that is made.
        data: Folder in the documented layout (image/, COCO/val2017/, COCO/annotations/, CC/). By default small scenes
            are drawn, with captions.
        teacher: The teacher's name, as for embed; goes with data. By default a small CLIP is trained on the scenes.
        seed: Of the scenes, the teacher and the students.

    Raises:
        Error: Only one of data and teacher is given, or `out` holds something else.
    """
    from pathlib import Path

    from clip_distill.verbs import run
    from clip_distill.walkthrough import flow

    flow.run(Path(out), spelt(data), teacher, seed, flow.Budget() if data is None else flow.REAL, run)
