"""How a program ends that is told to: Ctrl-C and SIGTERM, in one line and with the usual exit status."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from clip_distill.system.files import FULL
from clip_distill.system.talk import is_first

KEPT = {
    "embed": "finished shards are kept: run the same command again to go on",
    "fit": "nothing was trained yet: run the same command again",
    "search": "photos that were indexed are kept: run the same command again to go on",
}
OTHERWISE = "nothing is left half-written: run the same command again"


class Terminated(SystemExit):
    """The program got SIGTERM; `args` may hold what is kept."""

    def __init__(self, kept: str = "") -> None:
        super().__init__(128 + signal.SIGTERM)
        self.args = (kept,)


def ended_by(number: int, kept: str) -> BaseException:
    """What to raise where a signal was noted down and answered later; the message says what is kept."""
    return KeyboardInterrupt(kept) if number == signal.SIGINT else Terminated(kept)


def heed_sigterm() -> None:
    """Let SIGTERM unwind the program as Ctrl-C does, so that what is half-written is removed."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def tell_full_disks_once() -> None:
    """Leave out a thread's traceback of a full disk, which the main thread is told of as well."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in FULL):
            before(failed)

    threading.excepthook = hook


def leave(verb: str, end: BaseException) -> NoReturn:
    """Say what is kept, and end with status 130 or 143."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends what is left at once
        signal.signal(number, signal.SIG_DFL)
    name, status = ("Ctrl-C", 130) if isinstance(end, KeyboardInterrupt) else ("SIGTERM", 143)
    if is_first():
        said = str(end.args[0]) if end.args and end.args[0] else KEPT.get(verb, OTHERWISE)
        print(f"\nclip-distill {verb}: stopped by {name}; {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.exit(status)
