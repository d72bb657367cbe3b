"""The rows of files as they stand there, to be copied beside what is predicted for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from datamodules.readers.csv_json import csv_rows, json_records, replaced
from datamodules.readers.layouts import READERS, has_layout
from datamodules.readers.paths import DataPath, file_state, parse_data_path
from datamodules.readers.rows import NO_HEADER
from datamodules.readers.tsv import line_blocks, lines_of
from utils.errors import RunError
from utils.escapes import unescape_cell


class InputRecords:
    """The records of files, which are read again when their rows have been predicted.

    Raises:
        RunError: at the end of `rows`, when a file has changed since this object was made.
    """

    def __init__(self, paths: Sequence[str], layout: str = "") -> None:
        self.layout = layout
        self.paths = [parse_data_path(value) for value in paths]
        self.states = self._states()

    def rows(self, headers: Mapping[str, str], escapes: bool) -> Iterator[str]:
        """A JSON value for every row that prediction reads from the files, in its order.

        That of a JSON file is in its own letters; that of a layout is an object of what its file has. A row of a TSV or
        CSV is an object of its cells: by the name in the header, else (no header, a name twice, a cell too many) by the
        number of the column from 1.

        Args:
            headers: what was decided about the first line of each file, as in `RowReport`.
            escapes: whether those of TSV cells were read.
        """
        for data_path in self.paths:
            records: Iterator[str]
            has_header = headers.get(data_path.path, NO_HEADER) != NO_HEADER
            if has_layout(data_path, self.layout):
                rows = READERS[self.layout].file_rows(data_path.path)
                records = (replaced(json.dumps(row.record, ensure_ascii=False)) for row in rows)
            else:
                records = _records(data_path, has_header, escapes)
            yield from itertools.islice(records, 0, None, data_path.shard)
        for data_path, before, now in zip(self.paths, self.states, self._states(), strict=True):
            if before != now:
                raise RunError(f"{data_path.path} has changed while its rows were predicted")

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [file_state(data_path.path) for data_path in self.paths]


def _records(data_path: DataPath, has_header: bool, escapes: bool) -> Iterator[str]:
    if data_path.kind not in ("tsv", "csv"):
        return json_records(data_path.path)
    rows = _tsv_cells(data_path.path) if data_path.kind == "tsv" else _csv_cells(data_path.path)
    names = [cell.strip() for cell in next(rows, [])] if has_header else []
    keys = [name if name and names.count(name) == 1 else str(number) for number, name in enumerate(names, 1)]
    unescape = escapes and data_path.kind == "tsv"
    return (_object(keys, [unescape_cell(cell)[0] for cell in cells] if unescape else cells) for cells in rows)


def _object(keys: list[str], cells: list[str]) -> str:
    numbers = (str(number) for number in range(len(keys) + 1, len(cells) + 1))
    return json.dumps(dict(zip((*keys, *numbers), cells, strict=False)), ensure_ascii=False)


def _tsv_cells(path: str) -> Iterator[list[str]]:
    for block in line_blocks(path):
        for start, end in zip(*lines_of(np.frombuffer(block, dtype=np.uint8)), strict=True):
            yield block[start:end].decode("utf-8", "replace").split("\t")


def _csv_cells(path: str) -> Iterator[list[str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for _, cells, _ in csv_rows(path, file):
            yield [replaced(cell) for cell in cells]
