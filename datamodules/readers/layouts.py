"""Layouts of files that are no tables: a word of the task chooses the reader that makes columns of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datamodules.readers import conll, squad
from datamodules.readers.arrow import Stored
from datamodules.readers.columns import Wanted, locate
from datamodules.readers.csv_json import collect
from datamodules.readers.paths import DataPath
from datamodules.readers.rows import LayoutRow, RawRows, ReadOptions, RowReport
from task_utils import LAYOUTS


def _no_layout(stored: Stored) -> None:
    """Tables on the disk are read as tables."""


@dataclass(frozen=True)
class Layout:
    """One layout: the kinds of file that have it (of `paths.KINDS`), its readers of files and of tables on the disk.

    `file_rows(path)` gives a row at a time, each with the same columns; `table_rows` None for a table of other columns.
    """

    kinds: tuple[str, ...]
    file_rows: Callable[[str], Iterator[LayoutRow]]
    table_rows: Callable[[Stored], Iterator[LayoutRow] | None] = _no_layout


READERS = {
    "conll": Layout(("tsv",), conll.file_rows, conll.table_rows),
    "squad": Layout(("json", "jsonl"), squad.file_rows, squad.table_rows),
}


def register(name: str, layout: Layout) -> None:
    """Make a layout known to tasks; `ValueError` when another one has the name."""
    if READERS.setdefault(name, layout) != layout:
        raise ValueError(f"a layout named {name!r} is registered already")
    if name not in LAYOUTS:
        LAYOUTS.append(name)


def has_layout(data_path: DataPath, layout: str) -> bool:
    """Whether a file is read by the layout; a CSV, say, is a table with the columns that the layout would give."""
    return layout in READERS and data_path.kind in READERS[layout].kinds


def read_layout(
    path: str, layout: str, rows: Iterator[LayoutRow], wanted: Wanted, options: ReadOptions, report: RowReport
) -> Iterator[RawRows]:
    """The rows of a layout with the wanted columns."""
    first = next(rows, None)
    if first is None:
        return
    names = list(first.values)
    report.headers[path] = f"layout {layout}: {', '.join(names)}"
    places = locate(wanted, names, len(names), f"{path}:{first.line}")
    columns = {variable: names[place] for variable, place in places.items() if place is not None}
    records = (
        (row.line, {variable: row.values[name] for variable, name in columns.items()}, row.problem)
        for row in itertools.chain([first], rows)
    )
    yield from collect(path, records, ["source", "target", *wanted.extra], options)
