"""Whether a column holds captions: text, and not addresses, numbers, hashes or file names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from clip_distill.system.errors import InvalidValue

T = TypeVar("T")
ROWS = 100  # that are looked at
MOST_OTHER = 0.5
# an address, a number or date, a digest, a path or a file name
OTHER = re.compile(r"\w+://\S*|[-+\d.,:/ eE]+|[0-9a-fA-F]{16,}|[0-9a-fA-F-]{32,}|\S*[/\\]\S*|\S+\.[A-Za-z0-9]{2,5}")


def is_text(value: object) -> bool:
    """Whether a cell may be a caption."""
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and OTHER.fullmatch(text.strip()) is None for text in texts)


def require_text(
    path: str, rows: Iterable[T], caption: Callable[[T], object], columns: Callable[[], Sequence[Sequence[object]]]
) -> Iterator[T]:
    """Rows as they come, once the first ones have shown that their captions are text.

    Args:
        path: The file, for the message.
        rows: Its rows.
        caption: A row's caption.
        columns: The first cells of each of its columns, should a better one be sought.

    Raises:
        InvalidValue: Most captions are none; the message says which column looks like captions.
    """
    source = iter(rows)
    first = list(itertools.islice(source, ROWS))
    found = [each for each in map(caption, first) if each not in (None, "")]
    if sum(not is_text(each) for each in found) > MOST_OTHER * len(found):
        shares = [sum(map(is_text, column)) / max(1, len(column)) for column in columns()]
        best = max(range(len(shares)), key=shares.__getitem__, default=0)
        likely = "no other column looks like captions"
        if shares and shares[best] > MOST_OTHER:
            likely = f"column {best + 1} looks like captions: --sources.caption_column {best + 1}"
        raise InvalidValue(
            f"{path}: expected captions, found that most of the first {len(found)} are no text, such as "
            f"{str(found[0])[:60]!r}; {likely}. To take them all the same, name their column"
        )
    yield from first
    yield from source
