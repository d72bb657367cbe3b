"""Text for a terminal: safe to print, and aligned by the cells that letters take, so that Hangul counts two."""

from __future__ import annotations

from collections.abc import Sequence

from utils.escapes import escaped_character

TEXT_WIDTH = 60  # cells of a text in a list


def visible(text: str, width: int = TEXT_WIDTH) -> str:
    r"""`text` on one line, safe for a terminal: `\n`, `\u001b` as in files; cut with `…` at `width` cells."""
    if not text:
        return "(empty)"
    shown: list[str] = []
    room = width
    for character in text[: width + 1]:
        piece = character if character.isprintable() else escaped_character(character)
        room -= cells(piece)
        shown.append(piece)
        if room < 0:
            break
    if room >= 0 and len(text) <= width:
        return "".join(shown)
    while shown and sum(map(cells, shown)) > width - 1:
        shown.pop()
    return "".join(shown) + "…"


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table: the first `left` columns to the left, the others to the right, padded by terminal cells."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(cells(line[column]) for line in lines) for column in range(len(headers))]
    return [
        "  " + "  ".join(_pad(line[column], width, column < left) for column, width in enumerate(widths)).rstrip()
        for line in lines
    ]


def counted(count: int, unit: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def cells(text: str) -> int:
    """The columns of a terminal that `text` takes."""
    from rich.cells import cell_len

    return cell_len(text)


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - cells(text))
    return text + space if left else space + text
