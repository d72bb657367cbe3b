"""Rows on their way from a file to the encoder: what is kept, what is skipped, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from utils.errors import UserError

TEXT = pa.large_string()
PLACES_KEPT = 3
MOST_REASONS = 20
ANSWER_STARTS = "answer_starts"  # a column: where the right answers begin in the passage, a JSON list
NO_HEADER = "no header"  # what was decided about a first line; else the names are told

# The position of a reason is its code in `RawRows.problems`; 0 = none. Of two problems of a row the first found stays.
REASONS = (
    "",
    "empty line",
    "too few columns",
    "invalid UTF-8",
    "broken JSON",
    "broken CSV",
    "not a JSON object",
    "value is not text",
    "lone surrogate",
    "missing column",
    "empty source",
    "empty target",
    "sentence without tokens",
    "uneven number of columns",
    "more than one character on a line",
    "tag is none of O, B-TYPE and I-TYPE",
    "tag I-TYPE without its B-TYPE",
    "words are not numbered 1, 2, 3, ...",
    "head is no other word of the sentence, nor 0",
    "gold answer is not in the passage; the row is kept",
    "request without a user message",
    "request with content that is not text",
    "request for n other than 1, stream, logprobs or echo",
)
CODES = {reason: code for code, reason in enumerate(REASONS)}
KEPT = CODES["gold answer is not in the passage; the row is kept"]
_EMPTY_SIDE = [CODES["empty line"], CODES["empty source"], CODES["empty target"]]


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read. Columns are names or numbers from 1 ("" = the task's)."""

    source_column: str = ""
    target_column: str = ""
    header: str = "auto"  # auto, true or false; TSV and CSV only
    tsv_escapes: bool = True  # those of escapes.py, in the cells of a TSV
    strict: bool = False  # the first malformed row is an error
    keep_all: bool = False  # prediction: every row of the input is kept
    target_required: bool = True
    blank_targets: bool = False  # whether an empty target is a text like any other, for the encoder to judge
    optional: tuple[str, ...] = ()  # further columns that may be missing, like a target in prediction
    requests: bool = False  # a file is a batch of requests, see requests.py
    flag: str = "-train_data"  # the data flag: chooses the split of a folder or hub name, opens error messages


@dataclass
class RowReport:
    """What was met while reading: counts of rows, and of every kind of malformed row with the first places."""

    rows_read: int = 0
    malformed: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # path -> what was decided about its first line
    columns: dict[str, list[str]] = field(default_factory=dict)  # path -> their names, or the cells of a first row
    escapes_seen: int = 0

    def add(self, reason: str, count: int, places: Iterable[str]) -> None:
        """Count `count` malformed rows; of `places` (file:line) the first few are kept.

        `reason` may be `kind: what is wrong`; of more kinds of wrong than anyone reads, the rest counts as one.
        """
        if len(self.malformed) >= MOST_REASONS and reason not in self.malformed:
            reason = f"{reason.partition(': ')[0]}: other reasons"
        before, kept = self.malformed.get(reason, (0, []))
        for place in places:
            if len(kept) >= PLACES_KEPT:
                break
            kept.append(place)
        self.malformed[reason] = (before + count, kept)


@dataclass(frozen=True)
class RowChunk:
    """Consecutive rows of one file.

    `columns` holds the needed ones, plus `source` and `target`, as `large_string` arrays of one length; only `target`
    and the optional ones have nulls (no reference). `lines` are file lines (rows of a Parquet or Arrow file) from 1.
    `row_ids` count the rows of all inputs in order, the skipped ones too.
    """

    path: str
    columns: dict[str, pa.Array]
    lines: np.ndarray
    row_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    def kept(self, mask: np.ndarray) -> RowChunk:
        """The rows where the mask is true."""
        columns = {name: column.filter(pa.array(mask)) for name, column in self.columns.items()}
        return RowChunk(self.path, columns, self.lines[mask], self.row_ids[mask])

    def place(self, index: int) -> str:
        """`file:line` of a row of the chunk."""
        return f"{self.path}:{self.lines[index]}"


@dataclass(frozen=True)
class LayoutRow:
    """A row of a file that is no table: its columns by name (None = missing), and why it is malformed.

    `problem` is one of `REASONS`, "" for none. `record` is what stands in the file, for a copy beside the prediction.
    """

    line: int
    values: dict[str, str | None]
    problem: str = ""
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawRows:
    """Rows as parsed, before anything is dropped. `problems` holds a code of `REASONS` for each row."""

    path: str
    columns: dict[str, pa.Array]
    lines: np.ndarray
    row_numbers: np.ndarray  # 0-based, over the rows of this file before sharding
    problems: np.ndarray


def text_array(values: Iterable[str | None]) -> pa.Array:
    """A `large_string` array; `UnicodeEncodeError` on a lone surrogate."""
    return pa.array(values, TEXT)


def decoded(column: pa.Array, problems: np.ndarray, replace: bool) -> pa.Array:
    """A `large_binary` array as text; invalid UTF-8 is marked in `problems` and gets empty, or U+FFFD if `replace`."""
    try:
        return column.cast(TEXT)
    except pa.ArrowInvalid:
        pass
    texts: list[str | None] = []
    for index, value in enumerate(column.to_pylist()):
        try:
            texts.append(None if value is None else value.decode("utf-8"))
        except UnicodeDecodeError:
            texts.append(value.decode("utf-8", "replace") if replace else "")
            if problems[index] == 0:
                problems[index] = CODES["invalid UTF-8"]
    return pa.array(texts, TEXT)


def blank_mask(column: pa.Array) -> np.ndarray:
    """True where a text is null, empty or only white space."""
    trimmed = pc.binary_length(pc.utf8_ltrim_whitespace(column))
    return np.asarray(pc.fill_null(pc.equal(trimmed, 0), True).to_numpy(zero_copy_only=False), dtype=bool)


def take_shard(raw: RawRows, shard: int) -> RawRows:
    """Rows 0, N, 2N, ... of the file."""
    if shard == 1:
        return raw
    return _filtered(raw, raw.row_numbers % shard == 0)


def _filtered(raw: RawRows, keep: np.ndarray) -> RawRows:
    if keep.all():
        return raw
    mask = pa.array(keep)
    columns = {name: column.filter(mask) for name, column in raw.columns.items()}
    return RawRows(raw.path, columns, raw.lines[keep], raw.row_numbers[keep], raw.problems[keep])


def finish_rows(raw: RawRows, options: ReadOptions, report: RowReport, first_id: int) -> RowChunk:
    """Judge the rows: count the malformed ones, drop them (prediction keeps every row) and give the row ids.

    Raises `UserError` on the first malformed row when `options.strict`.
    """
    problems = raw.problems
    source, target = raw.columns["source"], raw.columns["target"]
    no_source, no_target = blank_mask(source), blank_mask(target)
    problems[no_source & np.isin(problems, (0, KEPT))] = CODES["empty source"]
    if options.target_required and not options.keep_all and not options.blank_targets:
        problems[no_target & np.isin(problems, (0, KEPT))] = CODES["empty target"]
    counted = problems > 0
    if options.keep_all:
        counted &= ~np.isin(problems, _EMPTY_SIDE)
    _count_problems(raw, counted, options, report)
    report.rows_read += len(problems)
    row_ids = np.arange(first_id, first_id + len(problems), dtype=np.int64)
    columns = dict(raw.columns)
    for name, column in columns.items():
        if name == "target" or name in options.optional:
            if options.blank_targets:
                continue
            blank = no_target if name == "target" else blank_mask(column)
            columns[name] = pc.if_else(pa.array(blank), pa.scalar(None, TEXT), column) if blank.any() else column
        elif column.null_count:
            columns[name] = pc.fill_null(column, "")
    keep = ~counted | (problems == KEPT)
    chunk = RowChunk(raw.path, columns, raw.lines, row_ids)
    return chunk if options.keep_all or keep.all() else chunk.kept(keep)


def _count_problems(raw: RawRows, counted: np.ndarray, options: ReadOptions, report: RowReport) -> None:
    if not counted.any():
        return
    where = np.flatnonzero(counted)
    if options.strict:
        first = int(where[0])
        reason = REASONS[raw.problems[first]].partition(";")[0]
        raise UserError(f"{raw.path}:{raw.lines[first]}: {reason} (-strict_data)")
    codes = raw.problems[where]
    for code in np.unique(codes):
        rows = where[codes == code]
        report.add(REASONS[code], len(rows), (f"{raw.path}:{raw.lines[row]}" for row in rows[:PLACES_KEPT]))


def stringified(values: list[Any]) -> tuple[list[str | None], list[int]]:
    """Python values of a JSON row as text, and the positions of those that are no text (lists, objects)."""
    texts: list[str | None] = []
    wrong = []
    for position, value in enumerate(values):
        if value is None or isinstance(value, str):
            texts.append(value)
        elif isinstance(value, bool):
            texts.append("true" if value else "false")
        elif isinstance(value, int | float):
            texts.append(repr(value))
        else:
            texts.append(None)
            wrong.append(position)
    return texts, wrong
