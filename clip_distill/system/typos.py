"""What a word that is not known was most likely meant to be, and folders that are not there, in one line each."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

from clip_distill.system.errors import NotFound

CLOSE = 0.6


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing where no known word is near."""
    names = list(known)
    tails = {name.rpartition(".")[2].lstrip("-"): name for name in names}  # --lr for --optimizer.lr
    near = [tails[word.lstrip("-")]] if word.lstrip("-") in tails else difflib.get_close_matches(word, names, 1, CLOSE)
    near = near or [tails[each] for each in difflib.get_close_matches(word.lstrip("-"), tails, 1, CLOSE)]
    return f": did you mean {near[0]}?" if near else ""


def one_line(message: str, flags: Iterable[str]) -> str:
    """A parser's message in one line, with the nearest flag, or the nearest of the values that fit.

    Args:
        message: What argparse or jsonargparse says.
        flags: Those that there are.
    """
    if unknown := re.match(r"[Uu]nrecognized arguments: (\S+)", message):
        flag = unknown[1].partition("=")[0]
        return f"unknown flag {flag}{did_you_mean(flag, flags)}"
    if found := re.search(r'key "([^"]+)".*Expected a (?:typing\.)?Literal\[(.*?)\]\. Got value: (\S+)', message, re.S):
        fits = re.findall(r"'([^']*)'", found[2])
        return f"--{found[1]}: expected one of {', '.join(fits)}, found {found[3]}{did_you_mean(found[3], fits)}"
    return " ".join(message.split())


def require_place(flag: str, place: str) -> None:
    """Refuse a folder or file that is not there, before anything is loaded; names of teachers and URLs may be others.

    Raises:
        NotFound: It is a path, and nothing lies there.
    """
    above, name = os.path.split(place.rstrip("/"))
    is_path = ":" not in place and ("/" not in place or place[0] in "./~" or os.path.isdir(above))
    if is_path and not os.path.exists(os.path.expanduser(place)):
        there = os.listdir(above or ".") if os.path.isdir(above or ".") else []
        near = difflib.get_close_matches(name, there, 1, CLOSE)
        hint = f": did you mean {os.path.join(above, near[0])}?" if near else ""
        raise NotFound(f"{flag} {place or repr(place)}: expected a folder or file, found nothing there{hint}")
