"""Tab-separated text to rows, vectorised over blocks of bytes: numpy finds tabs and newlines, Arrow gathers cells.

A line ends at a newline byte; one carriage return before it is dropped. Quotes and NUL bytes are plain text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.readers.columns import Wanted, first_cells, is_header, locate
from datamodules.readers.encodings import BYTE_ORDER_MARK
from datamodules.readers.rows import CODES, NO_HEADER, TEXT, RawRows, ReadOptions, RowReport, decoded
from utils.errors import UserError, shortened
from utils.escapes import unescape_cell

BLOCK_BYTES = 4 << 20
_SCOUT_LINES = 1000
_TAB, _NEWLINE, _RETURN = 9, 10, 13


def read_tsv(path: str, wanted: Wanted, options: ReadOptions, report: RowReport) -> Iterator[RawRows]:
    """Rows of a tab-separated file, some megabytes at a time; memory does not grow with the file."""
    positions: dict[str, int | None] | None = None
    line, row = 1, 0
    for block in line_blocks(path):
        buffer = np.frombuffer(block, dtype=np.uint8)
        starts, ends = lines_of(buffer)
        if positions is None:
            header, positions = _first_line(path, block, starts, ends, wanted, options, report)
            if header:
                starts, ends, line = starts[1:], ends[1:], line + 1
        if len(starts) == 0:
            continue
        yield _rows(_Block(path, block, starts, ends, line, row), positions, wanted, options, report)
        line += len(starts)
        row += len(starts)


def line_blocks(path: str) -> Iterator[bytes]:
    """Blocks of whole lines; the byte order mark is dropped."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(BYTE_ORDER_MARK))
            pending = [] if start == BYTE_ORDER_MARK else [start]
            while block := file.read(BLOCK_BYTES):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield b"".join((*pending, block[:cut]))
                    pending = [block[cut:]]
                else:
                    pending.append(block)
            if rest := b"".join(pending):
                yield rest
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line; bytes that are no UTF-8 stay lone surrogates."""
    number = 0
    for block in line_blocks(path):
        for line in block.removesuffix(b"\n").decode("utf-8", "surrogateescape").split("\n"):
            number += 1
            yield number, line.removesuffix("\r")


def lines_of(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First byte and end of every line, without its line end."""
    newlines = np.flatnonzero(buffer == _NEWLINE)
    if len(buffer) and buffer[-1] != _NEWLINE:
        newlines = np.append(newlines, len(buffer))
    starts = np.empty_like(newlines)
    starts[:1] = 0
    starts[1:] = newlines[:-1] + 1
    carriage = (newlines > starts) & (buffer[np.maximum(newlines - 1, 0)] == _RETURN)
    return starts, newlines - carriage


def _first_line(
    path: str,
    block: bytes,
    starts: np.ndarray,
    ends: np.ndarray,
    wanted: Wanted,
    options: ReadOptions,
    report: RowReport,
) -> tuple[bool, dict[str, int | None]]:
    """Whether the first line is a header, and the position of every wanted column."""
    cells = block[starts[0] : ends[0]].decode("utf-8", "replace").split("\t")
    header = is_header(cells, wanted, options.header, path)
    report.columns[path] = first_cells(cells)
    if header:
        names = [cell.strip() for cell in cells]
        report.headers[path] = f"header: {shortened(names)}"
        return True, locate(wanted, names, len(names), path)
    report.headers[path] = NO_HEADER
    return False, locate(wanted, None, _width(path), path)


def _width(path: str) -> int:
    """The most cells of a line among the first thousand."""
    width, lines = 1, 0
    for block in line_blocks(path):
        widths = [line.count(b"\t") + 1 for line in block.split(b"\n", _SCOUT_LINES)[:_SCOUT_LINES]]
        width, lines = max(width, *widths), lines + len(widths)
        if lines >= _SCOUT_LINES:
            break
    return width


@dataclass(frozen=True)
class _Block:
    """Whole lines of a file: their first bytes and ends, the number of the first line, and its row number from 0."""

    path: str
    data: bytes
    starts: np.ndarray
    ends: np.ndarray
    line: int
    row: int

    @cached_property
    def tabs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places of all tabs with a sentinel behind, and for each line the first of its tabs and their number."""
        tabs = np.flatnonzero(np.frombuffer(self.data, dtype=np.uint8) == _TAB)
        first = np.searchsorted(tabs, self.starts)
        return np.append(tabs, len(self.data)), first, np.searchsorted(tabs, self.ends) - first

    def cells(self, position: int) -> tuple[pa.Array, np.ndarray]:
        """Bytes of the cell at `position` (from 0) of each line, and whether the line has one."""
        tabs, first, counts = self.tabs
        there = counts >= position
        last = len(tabs) - 1
        left = self.starts if position == 0 else tabs[np.minimum(first + position - 1, last)] + 1
        right = np.where(counts > position, tabs[np.minimum(first + position, last)], self.ends)
        return _gather(self.data, np.where(there, left, self.ends), np.where(there, right, self.ends)), there


def _rows(
    block: _Block, positions: dict[str, int | None], wanted: Wanted, options: ReadOptions, report: RowReport
) -> RawRows:
    count = len(block.starts)
    problems = np.zeros(count, dtype=np.uint8)
    problems[block.starts == block.ends] = CODES["empty line"]
    escapes = options.tsv_escapes and b"\\" in block.data
    columns: dict[str, pa.Array] = {}
    by_position: dict[int | None, pa.Array] = {None: pa.nulls(count, TEXT)}
    for variable, position in positions.items():
        if position is not None and position not in by_position:
            cells, there = block.cells(position)
            if variable not in wanted.may_lack:
                problems[~there & (problems == 0)] = CODES["too few columns"]
            column = decoded(cells, problems, options.keep_all)
            by_position[position] = _unescaped(column, report) if escapes else column
        columns[variable] = by_position[position]
    lines, rows = np.arange(block.line, block.line + count), np.arange(block.row, block.row + count)
    return RawRows(block.path, columns, lines, rows, problems)


def _gather(block: bytes, left: np.ndarray, right: np.ndarray) -> pa.Array:
    """`large_binary` array of the slices [left, right), which must not overlap and must be in order.

    The block with the offsets l0, r0, l1, r1, ... is an Arrow array of slices and the gaps between them; `take` copies
    every second element at the speed of memory.
    """
    offsets = np.empty(2 * len(left), dtype=np.int64)
    offsets[0::2] = left
    offsets[1::2] = right
    whole = pa.Array.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(block)]
    )
    return whole.take(pa.array(np.arange(0, len(offsets), 2)))


def _unescaped(column: pa.Array, report: RowReport) -> pa.Array:
    """The cells with their escapes turned into what they stand for; other backslashes stay."""
    rows = np.flatnonzero(pc.match_substring(column, "\\").to_numpy(zero_copy_only=False))
    if len(rows) == 0:
        return column
    changed = []
    for value in column.take(pa.array(rows)).to_pylist():
        text, count = unescape_cell(value)
        report.escapes_seen += count
        changed.append(text)
    mask = np.zeros(len(column), dtype=bool)
    mask[rows] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array(changed, TEXT))
