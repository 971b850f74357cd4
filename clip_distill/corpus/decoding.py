"""Text files as they come: UTF-8, or UTF-16 and UTF-32, which are known by their byte order mark or their zeros."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO

from clip_distill.corpus.report import Skips
from clip_distill.system.errors import InvalidValue
from clip_distill.system.paths import open_binary

# UTF-32's mark begins with UTF-16's
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEAD = 4096  # bytes that tell an encoding
FEW_BAD, MANY_BAD = 9, 0.1  # lines, share of them: with more a file is in another encoding, not damaged here and there
FIX = "Convert it: iconv -f ENCODING -t UTF-8 (GB18030, WINDOWS-1252, …)"


def encoding_of(head: bytes) -> str:
    """The encoding of a text, by its first bytes: UTF-8 where nothing says otherwise."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head:
        return "utf-8"
    even, odd = head[0::2].count(0), head[1::2].count(0)  # of UTF-16, a Latin letter's or a line end's upper byte
    stray = max(even, odd) < len(head) / 10 and head.decode("utf-8", "replace").count("�") < len(head) / 50
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if not stray and zeros > others and _reads(head, name):
            return name
    return "utf-8"


def _reads(content: bytes, name: str) -> bool:
    text = codecs.getincrementaldecoder(name)("replace").decode(content)
    return "�" not in text and "\0" not in text


def decoded(content: bytes, what: str) -> str:
    """A whole text.

    Raises:
        InvalidValue: It is in another encoding; the message names the line.
    """
    try:
        return content.decode(encoding_of(content[:HEAD]))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = content[error.start : error.start + 8]
        raise InvalidValue(f"{what}, line {line}: expected UTF-8 or UTF-16, found {found!r}. {FIX}") from error


def encoding_of_file(path: str) -> str:
    """The encoding of a file or URL."""
    with open_binary(path) as file:
        return encoding_of(file.read(HEAD))


def lines_of(path: str, skips: Skips) -> Iterator[tuple[int, str]]:
    """A text file's lines with their numbers, without their ends; a damaged one is skipped, and counted.

    Raises:
        InvalidValue: The file is in another encoding; the message names the first line that shows it.
    """
    encoding = encoding_of_file(path)
    with open_binary(path) as file:
        if encoding not in ("utf-8", "utf-8-sig"):
            yield from _wide_lines(path, file, encoding)
            return
        first, bad, number = 0, 0, 0
        for number, line in enumerate(file, 1):
            try:
                yield number, line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                skips.add("line is not UTF-8", f"{path}, line {number}")
                first, bad = first or number, bad + 1
        if bad > max(FEW_BAD, MANY_BAD * number):
            raise InvalidValue(
                f"{path}: expected UTF-8 or UTF-16, found {bad:,} of {number:,} lines that are neither, the first "
                f"line {first}. {FIX}"
            )


def _wide_lines(path: str, file: IO[bytes], encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        for number, line in enumerate(io.TextIOWrapper(file, encoding, newline="\n"), 1):
            yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{path}, line {number + 1}: expected {encoding.upper()}, found: {error}. {FIX}") from error
