"""CSV (RFC 4180) and JSON (an object a line, or one array of objects) to rows."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from datamodules.readers.columns import Wanted, first_cells, is_header, locate
from datamodules.readers.encodings import BYTE_ORDER_MARK
from datamodules.readers.nested import MISSING, value_at
from datamodules.readers.rows import CODES, NO_HEADER, RawRows, ReadOptions, RowReport, stringified, text_array
from utils.errors import UserError, shortened

ROWS_A_CHUNK = 8192
CHUNK_CHARACTERS = 4 << 20
_SCOUT_ROWS = 1000

Item = TypeVar("Item")

# One row: its line, its values by variable (None = missing) and the reason why it is malformed ("" = it is not).
Record = tuple[int, Mapping[str, str | None], str]


def collect(path: str, records: Iterable[Record], variables: list[str], options: ReadOptions) -> Iterator[RawRows]:
    """Records gathered into chunks; a text with a lone surrogate makes its row malformed."""
    row = 0
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += sum(len(value) for value in record[1].values() if value)
        if len(batch) >= ROWS_A_CHUNK or size >= CHUNK_CHARACTERS:
            yield _raw_rows(path, batch, variables, row, options)
            row += len(batch)
            batch, size = [], 0
    if batch:
        yield _raw_rows(path, batch, variables, row, options)


def _raw_rows(path: str, batch: list[Record], variables: list[str], row: int, options: ReadOptions) -> RawRows:
    problems = np.fromiter((CODES[reason] for _, _, reason in batch), dtype=np.uint8, count=len(batch))
    columns = {}
    for variable in variables:
        texts = [values.get(variable) for _, values, _ in batch]
        try:
            columns[variable] = text_array(texts)
        except UnicodeEncodeError:
            columns[variable] = text_array(_without_surrogates(texts, problems, options.keep_all))
    lines = np.fromiter((line for line, _, _ in batch), dtype=np.int64, count=len(batch))
    return RawRows(path, columns, lines, np.arange(row, row + len(batch)), problems)


def _without_surrogates(texts: list[str | None], problems: np.ndarray, replace: bool) -> list[str | None]:
    """Texts that can be written as UTF-8. A surrogate is a byte that `surrogateescape` kept, or one of JSON's own."""
    clean: list[str | None] = []
    for index, text in enumerate(texts):
        try:
            if text is not None:
                text.encode("utf-8")
            clean.append(text)
        except UnicodeEncodeError:
            assert text is not None
            raw_bytes = any("\udc80" <= character <= "\udcff" for character in text)
            if problems[index] == 0:
                problems[index] = CODES["invalid UTF-8" if raw_bytes else "lone surrogate"]
            clean.append(replaced(text) if replace else "")
    return clean


def replaced(text: str) -> str:
    """The text with U+FFFD for every lone surrogate and every byte sequence that was no UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


def read_csv(path: str, wanted: Wanted, options: ReadOptions, report: RowReport) -> Iterator[RawRows]:
    """Rows of a comma-separated file; quoted cells may hold commas, doubled quotes and line ends."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv_rows(path, file)
        first = next(rows, None)
        if first is None:
            return
        names = [replaced(cell).strip() for cell in first[1]]
        header = is_header(names, wanted, options.header, path)
        report.headers[path] = f"header: {shortened(names)}" if header else NO_HEADER
        report.columns[path] = first_cells(names)
        scouted = [] if header else _scouted(first, rows)
        width = max((len(cells) for _, cells, _ in scouted), default=len(names)) or 1  # of empty lines alone
        positions = locate(wanted, names if header else None, width, path)
        records = (_csv_record(row, positions, wanted) for row in _chain_items(scouted, rows))
        yield from collect(path, records, list(positions), options)


CsvRow = tuple[int, list[str], str]


def _scouted(first: CsvRow, rows: Iterator[CsvRow]) -> list[CsvRow]:
    """The first row and some more: a blank or short first row does not tell how many columns there are."""
    scouted, size = [first], 0
    while len(scouted) < _SCOUT_ROWS and size < CHUNK_CHARACTERS and (row := next(rows, None)) is not None:
        scouted.append(row)
        size += sum(map(len, row[1]))
    return scouted


def csv_rows(path: str, file: Iterable[str]) -> Iterator[CsvRow]:
    """Line, cells and problem of every record. Raises `UserError` when a quote is never closed."""
    csv.field_size_limit(1 << 31)
    reader = csv.reader(file, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UserError(
                    f"{path}:{line}: a quoted cell that starts in this row is never closed; double the quotes inside "
                    "of cells, or name the file .tsv when it is tab-separated without quoting"
                ) from None
            yield line, [], "broken CSV"
            continue
        yield line, cells, "" if cells else "empty line"


def _csv_record(row: CsvRow, positions: dict[str, int | None], wanted: Wanted) -> Record:
    line, cells, problem = row
    values = {
        variable: cells[position] if position is not None and position < len(cells) else None
        for variable, position in positions.items()
    }
    if not problem and any(value is None for variable, value in values.items() if variable not in wanted.may_lack):
        problem = "too few columns"
    return line, values, problem


def read_json(path: str, wanted: Wanted, options: ReadOptions, report: RowReport) -> Iterator[RawRows]:
    """Rows of a file with a JSON object on each line; a .json file may be one array of objects instead."""
    values = json_items(path, options.keep_all)
    keys, scouted = _json_keys(path, values, wanted)
    report.columns[path] = first_cells(next((list(value) for _, value, _ in scouted if isinstance(value, dict)), []))
    report.headers[path] = "keys: " + ", ".join(f"{variable}={key}" for variable, key in keys.items() if key)
    records = (json_record(item, keys, wanted) for item in _chain_items(scouted, values))
    yield from collect(path, records, list(keys), options)


JsonItem = tuple[int, Any, str]  # line, value, problem


def _chain_items(first: list[Item], rest: Iterator[Item]) -> Iterator[Item]:
    yield from first
    first.clear()
    yield from rest


def starts_with(path: str, mark: bytes) -> bool:
    """Whether the first byte of a file that is no white space is `mark`."""
    with open(path, "rb") as file:
        while block := file.read(4096):
            if text := block.removeprefix(BYTE_ORDER_MARK).strip():
                return text[:1] == mark
    return False


class Decoder(Protocol):
    """What the readers ask of a `json.JSONDecoder`."""

    def decode(self, s: str) -> Any: ...

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]: ...


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the value of a key that occurs twice is a list of both, which is no text."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        found |= {key: [value for other, value in pairs if other == key] for key, n in counts.items() if n > 1}
    return found


# Numbers keep the digits of the file: 1.0 stays "1.0", and no large number loses any.
JSON_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, object_pairs_hook=_object)


class _AsWritten:
    """Gives the text of a value as the file has it, on one line: a line break in JSON is only a blank."""

    def decode(self, s: str) -> str:
        JSON_DECODER.decode(s)
        return self._on_one_line(s)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[str, int]:
        _, end = JSON_DECODER.raw_decode(s, idx)
        return self._on_one_line(s[idx:end]), end

    def _on_one_line(self, text: str) -> str:
        return text.replace("\r", " ").replace("\n", " ")


def json_records(path: str) -> Iterator[str]:
    """The record of every row of a .jsonl or .json file in the file's own letters; `null` of a broken line."""
    decoder = _AsWritten()
    return ("null" if value is None else value for _, value, _ in json_items(path, True, decoder))


def json_items(path: str, keep_all: bool, decoder: Decoder | None = None) -> Iterator[JsonItem]:
    """The values of a file with one on each line, or of one array in a .json file.

    Args:
        keep_all: whether bytes that are no UTF-8 become U+FFFD, so that the value can be read.
        decoder: the one that keeps numbers as they are written, unless another is given.
    """
    decoder = decoder or JSON_DECODER
    if path.lower().endswith(".json") and starts_with(path, b"["):
        return _json_array(path, decoder)
    return _json_lines(path, keep_all, decoder)


def _json_lines(path: str, keep_all: bool, decoder: Decoder) -> Iterator[JsonItem]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            raw = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            problem = ""
            try:
                text = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                problem = "invalid UTF-8"
                text = raw.decode("utf-8", "replace").strip() if keep_all else ""
            if not text:
                yield number, None, problem or "empty line"
                continue
            try:
                yield number, decoder.decode(text), problem
            except (ValueError, RecursionError):
                yield number, None, problem or "broken JSON"


def _json_array(path: str, decoder: Decoder) -> Iterator[JsonItem]:
    """Elements of the array, with the line where each starts. Raises `UserError` at broken JSON: no way to go on."""
    text = whole_text(path)
    end = yield from array_items(path, text, text.index("[") + 1, decoder)
    if text[end:].strip():
        raise UserError(f"{path}:{line_at(text, end)}: text after the end of the JSON array")


def whole_text(path: str) -> str:
    """The text of a file that is one JSON value."""
    with open(path, "rb") as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: invalid UTF-8 in a file that is one JSON value") from None


def line_at(text: str, position: int) -> int:
    """The line of a position, from 1."""
    return text.count("\n", 0, position) + 1


def array_items(path: str, text: str, position: int, decoder: Decoder) -> Generator[JsonItem, None, int]:
    """Elements of the array whose `[` stands before `position`, one at a time; returns where its end is."""
    line, counted = 1, 0
    expected = "value or ]"
    while True:
        position = after_blanks(text, position)
        line, counted = line + text.count("\n", counted, position), position
        character = text[position : position + 1]
        if character == "]" and expected != "value":
            return position + 1
        if expected == ", or ]":
            if character != ",":
                raise UserError(f"{path}:{line}: broken JSON: ',' or ']' expected")
            position, expected = position + 1, "value"
            continue
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
            raise UserError(f"{path}:{line}: broken JSON in the array that starts here or later: {reason}") from None
        yield line, value, ""
        expected = ", or ]"


def after_blanks(text: str, position: int) -> int:
    """The first position from there on that holds no white space of JSON."""
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def _json_keys(path: str, values: Iterator[JsonItem], wanted: Wanted) -> tuple[dict[str, str | None], list[JsonItem]]:
    """Key of every variable, from the first rows; and these rows. A column number counts the keys of the first object.

    Raises `UserError` when no object among these rows has a key.
    """
    scouted: list[JsonItem] = []
    names: list[str] = []
    missing = {name for name in (*wanted.names, *wanted.extra, wanted.target) if isinstance(name, str)}
    nested: list[str] = []
    for item in values:
        scouted.append(item)
        if isinstance(item[1], dict):
            names += [key for key in item[1] if key not in names]
            found = {name for name in missing if value_at(item[1], name) is not MISSING}
            nested += sorted(name for name in found if name not in item[1])
            missing -= found
        if len(scouted) >= _SCOUT_ROWS or (names and not missing):
            break
    if not names:
        return dict.fromkeys(("source", "target", *wanted.extra)), scouted
    names += [name for name in nested if name not in names]
    positions = locate(wanted, names, len(names), path)
    return {variable: None if at is None else names[at] for variable, at in positions.items()}, scouted


def json_record(item: JsonItem, keys: Mapping[str, str | None], wanted: Wanted) -> Record:
    """The values of a JSON object by variable; `keys` are those that the variables have in it, None = none."""
    line, value, problem = item
    if not isinstance(value, dict):
        return line, {}, problem or "not a JSON object"
    found = {variable: None if key is None else value_at(value, key) for variable, key in keys.items()}
    if not problem and any(at is MISSING for variable, at in found.items() if variable not in wanted.may_lack):
        problem = "missing column"
    texts, wrong = stringified([None if at is MISSING else at for at in found.values()])
    if wrong and not problem:
        problem = "value is not text"
    return line, dict(zip(keys, texts, strict=True)), problem
