"""`clip-distill VERB …`: a table of verbs, each imported only when it is called, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import sys

from clip_distill.system.allocator import keep_memory
from clip_distill.system.ends import Terminated, heed_sigterm, leave, tell_full_disks_once
from clip_distill.system.errors import Error
from clip_distill.system.files import FULL
from clip_distill.system.openmp import wait_shortly
from clip_distill.system.typos import did_you_mean

VERBS = {
    "embed": "run the teacher once over photos and captions, into a store of embeddings",
    "fit": "train a small image or text encoder from a store",
    "evaluate": "measure retrieval of teacher and students, in all pairings",
    "zero-shot": "find the class of photos by its name, with teacher and students",
    "drop-in": "say whether a student may serve an index that its teacher made",
    "report": "show what students kept, on one page: recall with intervals, charts, queries",
    "search": "search your photos by words or by a photo, in the terminal and on a page",
    "benchmark": "measure speed, memory and size of teacher and students, in torch and ONNX Runtime",
    "export": "write a student for the program that you have, and check it there",
    "store": "look at a store, check it, exchange it with other programs",
    "plan": "state hours, disk and memory of embed and fit, from a few measured batches",
    "quickstart": "the whole way in minutes, on sample data or on yours",
}

USAGE = """usage: clip-distill [--quiet | --verbose] VERB [options]

Distil a CLIP-like teacher into a small image or text encoder, one tower at a time.

{verbs}

The usual way, one line a step (`clip-distill VERB --help` explains each):
  clip-distill embed --data DATA --teacher ViT-B-32/openai --store stores/b32
  clip-distill fit --recipe flickr8k_text --data DATA --store stores/b32 --out runs/text
  clip-distill evaluate --data DATA --store stores/b32 --text_student runs/text
  clip-distill export --store stores/b32 --text_student runs/text --out exported

  --quiet      results and warnings alone
  --verbose    with a traceback for every error, and all that Lightning says
  --version    the version
  --trust_code let a recipe or a student's folder import code that it names (module:Attr)
Colours and bars are for terminals; NO_COLOR=1 leaves out the colours there, too.

See it work first, offline: clip-distill quickstart
"""
TRAIN = ("torch", "torchvision", "lightning", "open_clip", "timm", "torchmetrics")  # of the extra `train`
TRUST_FLAGS = {"--trust_code", "--trust-code"}
LOUDNESS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `clip-distill` command; known errors end as one message and exit code 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = [word for word in words if word in LOUDNESS]
    if TRUST_FLAGS & set(words):
        os.environ["CLIP_DISTILL_TRUST_CODE"] = "1"
    words = [word for word in words if word not in LOUDNESS.keys() | TRUST_FLAGS]
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {name:<11} {text}" for name, text in VERBS.items())))
        return
    if verb == "--version":
        from importlib.metadata import version

        print(version("clip-distill"))
        return
    verb = verb.replace("_", "-")
    if verb not in VERBS:
        sys.exit(f"clip-distill: unknown verb {verb!r}: expected one of {', '.join(VERBS)}{did_you_mean(verb, VERBS)}")
    keep_memory()
    wait_shortly()  # a verb's module loads torch
    from clip_distill.system.talk import to_console
    from clip_distill.verbs import run

    to_console(LOUDNESS[chosen[-1]] if chosen else logging.INFO)
    verbose = "--verbose" in chosen or bool(os.environ.get("CLIP_DISTILL_TRACEBACK"))
    heed_sigterm()
    tell_full_disks_once()
    try:
        run(verb, words[1:])
    except (KeyboardInterrupt, Terminated) as end:
        leave(verb, end)
    except Exception as error:
        # known by its name: importing Lightning to name a mistake in its arguments would take seconds
        lightnings_own = type(error).__name__ == "MisconfigurationException"
        # those of the package, and of the libraries that it calls with what the user gave
        known = isinstance(error, (Error, ValueError, OSError, ImportError)) or lightnings_own
        if not known or verbose:
            raise
        hint = "; install it with: pip install 'clip-distill[train]'" if getattr(error, "name", None) in TRAIN else ""
        if isinstance(error, OSError) and error.errno in FULL:
            hint = ": make room, and run the same command again"
        sys.exit(f"clip-distill {verb}: {error}{hint}\n(--verbose shows where it was raised)")
