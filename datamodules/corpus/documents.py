"""Documents of a corpus, one after the other, in memory that depends neither on the files nor on a line's length."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from datamodules.corpus.sources import DocumentOptions, Part, corpus_files, opened
from datamodules.readers.arrow import Stored, stored_table, stream_table
from datamodules.readers.encodings import BYTE_ORDER_MARK, SAMPLE_BYTES, other_content
from datamodules.readers.nested import MISSING, fields_at, value_at
from datamodules.readers.paths import DataPath
from datamodules.readers.rows import TEXT, RowReport
from utils.errors import UserError, first_line, shortened

BLOCK_BYTES = 1 << 20
MOST_BYTES = 4 << 20  # of a document, about: some thick books; sentencepiece takes 80 times as much memory
MOST_JSON_BYTES = 32 << 20  # of a line
CUT = f"document longer than {MOST_BYTES >> 20} MiB, cut into several"
TOO_LONG = f"line longer than {MOST_JSON_BYTES >> 20} MiB, skipped"
_LOOK_BACK = 1 << 16  # bytes in which a blank is looked for to cut at


@dataclass(frozen=True)
class Document:
    """One text, and the `file:line` where it begins (`file:row` for Parquet and Arrow)."""

    text: str
    place: str


@dataclass(frozen=True)
class Documents:
    """Some documents of one file, and the lines (or rows) where they begin, from 1 on in their part of the file."""

    part: Part
    texts: list[str]
    lines: list[int]


def read_documents(values: Sequence[str], options: DocumentOptions, report: RowReport) -> Iterator[Document]:
    """All documents of the files, folders and hub data sets that `values` name, in order; none is empty.

    What is skipped is counted in `report` with the first places, whose `rows_read` is the number of documents. Raises
    `UserError` for a file that is missing, damaged or of an unknown type, and where no document is found.
    """
    for part in corpus_files(values, options, report):
        for batch in read_part(part, options, report):
            for text, line in zip(batch.texts, batch.lines, strict=True):
                yield Document(text, f"{part.path}:{line}")
    if not report.rows_read:
        raise no_document(values, options, report)


def no_document(values: Sequence[str], options: DocumentOptions, report: RowReport) -> UserError:
    """What to tell of a corpus without a document."""
    start = f"{options.flag} {' '.join(values)}: no document"
    if not report.malformed:
        return UserError(f"{start}: the files hold no text")
    reason, (count, places) = max(report.malformed.items(), key=lambda item: item[1][0])
    return UserError(f"{start}; {count:,} of {reason}, first at {places[0]}")


def read_part(part: Part, options: DocumentOptions, report: RowReport) -> Iterator[Documents]:
    """The documents of a part of a file, some megabytes at a time; `report` counts them and what is skipped."""
    batches = (
        _stored_texts(part, options, report) if part.kind in ("parquet", "arrow") else _texts(part, options, report)
    )
    for batch in batches:
        report.rows_read += len(batch.texts)
        if batch.texts:
            yield batch


@contextmanager
def _read_errors(part: Part) -> Iterator[None]:
    """What a file that is damaged or gone raises as a `UserError`."""
    from lzma import LZMAError

    try:
        yield
    except (OSError, EOFError, LZMAError) as error:  # pyarrow's are of OSError
        damaged = "; it is damaged, or its end is missing: get it again" if part.compression else ""
        raise UserError(f"{part.path}: cannot be read ({first_line(error)}){damaged}") from None


def _texts(part: Part, options: DocumentOptions, report: RowReport) -> Iterator[Documents]:
    with _read_errors(part), opened(part) as stream:
        if not _is_text(part, stream.read(SAMPLE_BYTES), report):
            return
    with _read_errors(part), opened(part) as stream:
        chunks = _chunks(stream, part, MOST_JSON_BYTES if part.kind == "jsonl" else MOST_BYTES)
        if part.kind == "jsonl":
            yield from _json_lines(part, chunks, options.column, report)
        elif options.separator == "line":
            yield from _text_lines(part, chunks, report)
        else:
            yield from _joined_lines(part, chunks, options.separator == "blank", report)


def _is_text(part: Part, sample: bytes, report: RowReport) -> bool:
    """Whether a file is UTF-8 text by its beginning; one that is none is counted once, with its first part."""
    found = other_content(sample)
    place = part.path
    if sample.count(0) > len(sample) // 100 and not (found and (found.encoding or not found.line)):
        reason = "file that holds binary data, skipped"
    elif found is not None:
        way_out = f" (iconv -f {found.encoding} -t utf-8)" if found.encoding else ""
        reason = f"file skipped: {found.what}{way_out}"
        place += f":{found.line}" if found.line else ""
    else:
        return True
    if part.start == 0:
        report.add(reason, 1, [place])
    return False


# Bytes of whole lines, or with False of the beginning or the middle of a line that goes on in the next chunk.
Chunk = tuple[bytes, bool]


def _chunks(stream: IO[bytes], part: Part, most: int) -> Iterator[Chunk]:
    """The bytes of a part in chunks of about a block, or of about `most` where a line is as long."""
    if part.start:
        stream.seek(part.start)
    left = None if part.stop is None else part.stop - part.start
    waiting: list[bytes] = []
    first = part.start == 0
    while block := stream.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
        left = None if left is None else left - len(block)
        block, first = (block.removeprefix(BYTE_ORDER_MARK) if first else block), False
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join((*waiting, block[:end])), True
            waiting = [block[end:]]
            continue
        waiting.append(block)
        if sum(map(len, waiting)) >= most:
            line = b"".join(waiting)
            cut = _place_to_cut(line)
            yield line[:cut], False
            waiting = [line[cut:]]
    if rest := b"".join(waiting):
        yield rest, True


def _place_to_cut(line: bytes) -> int:
    """Behind the last blank near the end; without one, between two letters."""
    blank = line.rfind(b" ", len(line) - _LOOK_BACK)
    if blank >= 0:
        return blank + 1
    end = len(line)
    while end > len(line) - 4 and line[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if line[end - 1] >= 0xC0 else len(line)


@dataclass(frozen=True)
class _Lines:
    """Texts of lines that are UTF-8 (None = one that is not, and was counted) and the number of the first.

    `begins` and `ends` say whether the first one is the beginning of its line, and the last one the end.
    """

    texts: list[str | None]
    number: int
    begins: bool
    ends: bool


def _lines(part: Part, chunks: Iterable[Chunk], report: RowReport) -> Iterator[_Lines]:
    """Chunks as lines without their ends; those that are no text are counted."""
    number, begins = 1, True
    for data, ends in chunks:
        raw = data.removesuffix(b"\n").split(b"\n")
        texts: list[str | None]
        try:
            if b"\0" in data:
                raise ValueError
            texts = [*data.decode("utf-8").removesuffix("\n").split("\n")]
        except ValueError:  # a UnicodeDecodeError is one
            texts = [_line_text(line, f"{part.path}:{number + at}", report) for at, line in enumerate(raw)]
        yield _Lines(texts, number, begins, ends)
        number += len(texts) - (not ends)
        begins = ends


def _line_text(line: bytes, place: str, report: RowReport) -> str | None:
    if b"\0" in line:
        report.add("line with NUL bytes, skipped", 1, [place])
        return None
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        report.add("line that is no UTF-8, skipped", 1, [place])
        return None


def _text_lines(part: Part, chunks: Iterable[Chunk], report: RowReport) -> Iterator[Documents]:
    """A document a line."""
    for lines in _lines(part, chunks, report):
        if lines.begins and not lines.ends:
            report.add(CUT, 1, [f"{part.path}:{lines.number}"])
        texts, numbers = [], []
        for number, line in enumerate(lines.texts, lines.number):
            text = (line or "").strip()
            if text:
                texts.append(text)
                numbers.append(number)
        yield Documents(part, texts, numbers)


def _joined_lines(part: Part, chunks: Iterable[Chunk], blank: bool, report: RowReport) -> Iterator[Documents]:
    """A document from one blank line to the next, or all lines of the file; one that is too long is cut."""
    texts: list[str] = []
    numbers: list[int] = []
    waiting: list[str] = []
    size = began = 0
    is_cut = False

    def end_document() -> None:
        nonlocal size
        if text := "".join(waiting).strip():
            texts.append(text)
            numbers.append(began)
        waiting.clear()
        size = 0

    for lines in _lines(part, chunks, report):
        last = lines.number + len(lines.texts) - 1
        for number, line in enumerate(lines.texts, lines.number):
            whole = lines.ends or number < last
            is_whole = whole and (lines.begins or number > lines.number)
            if blank and is_whole and line is not None and not line.strip():
                end_document()
                is_cut = False
                continue
            if size + len(line or "") * 3 > MOST_BYTES and waiting:
                if not is_cut:
                    report.add(CUT, 1, [f"{part.path}:{began}"])
                is_cut = True
                end_document()
            began = began if waiting else number
            waiting.append((line or "").removesuffix("\r") + ("\n" if whole else ""))
            size += len(line or "") * 3
        yield Documents(part, texts, numbers)
        texts, numbers = [], []
    end_document()
    yield Documents(part, texts, numbers)


def _json_lines(part: Part, chunks: Iterable[Chunk], column: str, report: RowReport) -> Iterator[Documents]:
    """A JSON object a line; one longer than a chunk is never held as a whole, and skipped."""
    keys: list[str] = []  # of the first object without a text
    for lines in _lines(part, chunks, report):
        texts: list[str] = []
        numbers: list[int] = []
        for number, line in enumerate(lines.texts, lines.number):
            is_first, is_last = number == lines.number, number == lines.number + len(lines.texts) - 1
            if (is_first and not lines.begins) or (is_last and not lines.ends):
                if is_last and not lines.ends and lines.begins:
                    report.add(TOO_LONG, 1, [f"{part.path}:{number}"])
                continue
            if not (line or "").strip():
                continue
            assert line is not None
            text, problem = _json_text(line, column, keys)
            if problem:
                report.add(problem, 1, [f"{part.path}:{number}"])
            elif text:
                _add(part, text, number, texts, numbers, report)
        yield Documents(part, texts, numbers)


def _add(part: Part, text: str, number: int, texts: list[str], numbers: list[int], report: RowReport) -> None:
    """Append a text to those of a batch, in pieces where it is too long."""
    if len(text) * 4 > MOST_BYTES and len(rest := text.encode()) > MOST_BYTES:
        report.add(CUT, 1, [f"{part.path}:{number}"])
        while len(rest) > MOST_BYTES:
            cut = _place_to_cut(rest[:MOST_BYTES])
            texts.append(rest[:cut].decode().strip())
            numbers.append(number)
            rest = rest[cut:]
        text = rest.decode().strip()
    if text:
        texts.append(text)
        numbers.append(number)


def _json_text(line: str, column: str, keys: list[str]) -> tuple[str, str]:
    """The text of a JSON object, and why it has none."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "", "line that is no JSON, skipped (a file that is one JSON array has to become one object a line)"
    if not isinstance(value, dict):
        return "", "line that is no JSON object, skipped"
    text = value_at(value, column)
    if text is MISSING:
        keys[:] = keys or list(value) or ["none"]
        return "", f"object without key {column!r}, skipped (the first such has {shortened(keys)}; see -corpus_column)"
    if text is not None and not isinstance(text, str):
        return "", f"value of {column!r} that is no text, skipped"
    text = (text or "").strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "", "text with half a surrogate pair, skipped"
    return ("", "text with NUL bytes, skipped") if "\0" in text else (text, "")


def _stored_texts(part: Part, options: DocumentOptions, report: RowReport) -> Iterator[Documents]:
    """The rows of a Parquet or Arrow file, of one text column."""
    with _read_errors(part):
        if part.kind == "arrow":
            yield from _column_texts(part, stream_table(part.path), options.column, report)
            return
        with stored_table(DataPath(part.path, "parquet"), options.flag) as stored:
            yield from _column_texts(part, stored, options.column, report)


def _column_texts(part: Part, stored: Stored, name: str, report: RowReport) -> Iterator[Documents]:
    keys = fields_at(stored.schema, name)
    if keys is None:
        raise UserError(
            f"{part.path}: no column {name!r}; it has {shortened(stored.schema.names)}; -corpus_column names it"
        )
    row = 1
    try:
        for batch in stored.batches([".".join(keys)]):
            column = batch.column(batch.schema.get_field_index(keys[0]))
            column = pc.struct_field(column, list(keys[1:])) if keys[1:] else column
            rows = max(1, len(column) * BLOCK_BYTES // max(1, column.nbytes))
            for start in range(0, len(column), rows):
                yield _stored_documents(part, name, column.slice(start, rows), row + start, report)
            row += len(batch)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{part.path}: broken near row {row} ({first_line(error)})") from None


def _stored_documents(part: Part, name: str, column: pa.Array, row: int, report: RowReport) -> Documents:
    texts: list[str] = []
    numbers: list[int] = []
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise UserError(f"{part.path}: column {name!r} holds {column.type}, not text")
    for number, value in enumerate(column.cast(TEXT).cast(pa.large_binary()).to_pylist(), row):
        text = (_line_text(value, f"{part.path}:{number}", report) if value else None) or ""
        _add(part, text.strip(), number, texts, numbers, report)
    return Documents(part, texts, numbers)
