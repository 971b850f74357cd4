"""Which column of a table holds captions, and which the names of their photos."""

from __future__ import annotations

from clip_distill.system.errors import InvalidValue

CAPTION_COLUMNS = ("caption", "text", "title")
IMAGE_COLUMNS = ("image", "file_name", "filepath", "path", "image_path")


def has_header(cells: list[str], caption_column: str | None) -> bool:
    wanted = {*CAPTION_COLUMNS, (caption_column or CAPTION_COLUMNS[0]).lower()}
    return any(cell.strip().lower() in wanted for cell in cells)


def pick_columns(
    path: str, header: list[str], caption_column: str | None, image_column: str | None
) -> tuple[int, int | None]:
    """Positions of the caption's and the photo's columns."""
    caption = _find_column(path, header, caption_column, CAPTION_COLUMNS, "caption_column")
    if caption is None:
        raise InvalidValue(
            f"{path}: expected a column called {', '.join(CAPTION_COLUMNS)}, found {header or 'an empty file'}. "
            "Name the caption's column with --sources.caption_column"
        )
    return caption, _find_column(path, header, image_column, IMAGE_COLUMNS, "image_column")


def _find_column(path: str, header: list[str], wanted: str | None, known: tuple[str, ...], option: str) -> int | None:
    lowered = [name.strip().lower() for name in header]
    if wanted is None:
        return next((lowered.index(name) for name in known if name in lowered), None)
    if wanted.lower() in lowered:
        return lowered.index(wanted.lower())
    if wanted.isdecimal() and 1 <= int(wanted) <= len(header):
        return int(wanted) - 1
    found = ", ".join(map(repr, header)) if any(header) else f"{len(header)} columns without names"
    raise InvalidValue(
        f"{path}: expected a column {wanted!r} (--sources.{option}, a name or a number from 1), found {found}"
    )
