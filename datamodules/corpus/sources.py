"""What -corpus names: files, folders and data sets of the hub, cut into pieces that processes read side by side.

A piece depends on the files alone, never on the number of processes, so that its tokens are found again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from datamodules.readers.paths import DataPath, arrow_files, load_hub_dataset, parse_data_path
from datamodules.readers.rows import RowReport
from utils.errors import UserError, first_line

KINDS = {
    **dict.fromkeys((".txt", ".text"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
KNOWN = "known: .txt, .jsonl, .parquet, each but the last also .gz, .zst, .bz2 or .xz; -corpus_format names another's"
PIECE_BYTES = 64 << 20  # some seconds of a tokenizer
SHRUNK = 4  # times: text in a compressed file, about
_TABLES = (".tsv", ".csv")
_FILES_SKIPPED = "file of an unknown type, skipped"


@dataclass(frozen=True)
class DocumentOptions:
    """How documents stand in files: the format of all of them (auto = by their names), what separates documents in
    text (the end of a line, a blank line or the end of the file), and the JSON key or Parquet column of the text."""

    format: str = "auto"
    separator: str = "line"
    column: str = "text"
    flag: str = "-corpus"  # that names the files: chooses the split of a hub name, opens messages


@dataclass(frozen=True)
class Part:
    """A file, or the bytes `start` to `stop` of one that can be cut; `size` is about what it takes to read."""

    path: str
    kind: str  # text, jsonl, parquet or arrow
    compression: str
    size: int
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Piece:
    """What one process reads at a time: a part of a file, or several small files."""

    parts: tuple[Part, ...]


def corpus_files(values: Iterable[str], options: DocumentOptions, report: RowReport) -> list[Part]:
    """All files that the values of the flag name, each once, in order; in a folder by name, at any depth.

    Files of a folder that are no text for their names are counted in `report`. Raises `UserError` with all problems.
    """
    found: dict[str, Part] = {}
    problems: list[str] = []
    for value in values:
        try:
            for part in _files_of(value, options, report):
                found.setdefault(os.path.realpath(part.path), part)
        except UserError as error:
            start = f"{options.flag}: "  # which those of the hub have
            problems += [start + problem.removeprefix(start) for problem in error.problems]
    if problems:
        raise UserError(*problems)
    return list(found.values())


def corpus_problems(values: Iterable[str], options: DocumentOptions) -> list[str]:
    """Problems of the values of the flag that show without reading a file; names of the hub are not looked up."""
    problems: list[str] = []
    for value in values:
        try:
            if os.path.exists(value):
                _files_of(value, options, RowReport())
            else:
                _hub_name(value)
        except UserError as error:
            problems += [f"{options.flag}: {problem}" for problem in error.problems]
    return problems


def _files_of(value: str, options: DocumentOptions, report: RowReport) -> list[Part]:
    if os.path.isdir(value):
        if any(Path(value, name).is_file() for name in ("state.json", "dataset_dict.json")):
            return [_part(file, "arrow", "") for file in arrow_files(value, options.flag)]
        return _folder(value, options, report)
    if os.path.exists(value):
        if not os.path.isfile(value):
            raise UserError(f"{value}: is no regular file; write the text to a file first")
        part = _typed(value, options)
        if part is None:
            raise UserError(f"{value}: unknown type of corpus file {Path(value).suffix!r}; {KNOWN}{_way_out(value)}")
        return [part]
    data_path = _hub_name(value)
    dataset = load_hub_dataset(data_path, options.flag)
    return [_part(file["filename"], "arrow", "") for file in dataset.cache_files]


def _way_out(value: str) -> str:
    is_table = Path(value).suffix.lower() in _TABLES
    return "; of a table, cut out the column: tail -n +2 FILE | cut -f2 > NEW.txt" if is_table else ""


def _hub_name(value: str) -> DataPath:
    suffixes = Path(value).suffix.lower()
    if suffixes not in COMPRESSIONS and suffixes not in KINDS:
        data_path = parse_data_path(value)
        if data_path.kind == "hub" and data_path.shard == 1:
            return data_path
    raise UserError(f"{value}: no such file or folder")


def _folder(folder: str, options: DocumentOptions, report: RowReport) -> list[Part]:
    parts, others = [], []
    for path in sorted(_visible(folder)):
        part = _typed(path, options)
        if part is not None:
            parts.append(part)
        else:
            others.append(path)
    if others:
        report.add(_FILES_SKIPPED, len(others), others)
    if not parts:
        seen = f"{len(others):,} other files, such as {others[0]}" if others else "nothing"
        raise UserError(f"{folder}: the folder holds no corpus file, but {seen}; {KNOWN}")
    return parts


def _visible(folder: str) -> Iterator[str]:
    """Regular files at any depth; none that is hidden or lies in a hidden folder."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (os.path.join(place, name) for name in files if not name.startswith("."))
        yield from filter(os.path.isfile, paths)


def _typed(path: str, options: DocumentOptions) -> Part | None:
    """The file with the kind and the compression that its name tells; None where the name tells no kind."""
    compression = COMPRESSIONS.get(Path(path).suffix.lower(), "")
    name = path[: -len(Path(path).suffix)] if compression else path
    kind = KINDS.get(Path(name).suffix.lower()) if options.format == "auto" else options.format
    if kind is None or (kind == "parquet" and compression):
        return None
    return _part(path, kind, compression)


def _part(path: str, kind: str, compression: str) -> Part:
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return Part(path, kind, compression, size * SHRUNK if compression else size)


def cut_pieces(files: Iterable[Part], options: DocumentOptions) -> list[Piece]:
    """The files as pieces of about `PIECE_BYTES`: long texts are cut between documents, small files put together."""
    pieces: list[Piece] = []
    waiting: list[Part] = []
    for file in files:
        can_be_cut = file.kind == "jsonl" or (file.kind == "text" and options.separator != "file")
        cut = _cut(file, options) if can_be_cut and not file.compression else [file]
        for part in cut:
            if waiting and sum(other.size for other in waiting) + part.size > PIECE_BYTES:
                pieces.append(Piece(tuple(waiting)))
                waiting = []
            waiting.append(part)
    return [*pieces, Piece(tuple(waiting))] if waiting else pieces


def _cut(file: Part, options: DocumentOptions) -> list[Part]:
    if file.size <= PIECE_BYTES:
        return [file]
    blank = file.kind == "text" and options.separator == "blank"
    with opened(file) as stream:
        cuts = [0, *(_next_document(stream, at, blank) for at in range(PIECE_BYTES, file.size, PIECE_BYTES)), file.size]
    bounds = sorted(set(cuts))
    return [Part(file.path, file.kind, "", stop - start, start, stop) for start, stop in pairwise(bounds)]


def _next_document(stream: IO[bytes], position: int, blank: bool) -> int:
    """Where the first document at or after a position begins; with `blank`, behind a blank line."""
    stream.seek(position - 1)
    while (text := stream.readline(1 << 20)) and not text.endswith(b"\n"):
        pass
    if not blank:
        return stream.tell()
    seen_blank, at_start = False, True
    while True:
        place = stream.tell()
        text = stream.readline(1 << 20)
        is_blank = not text.strip()
        if not text or (seen_blank and at_start and not is_blank):
            return place
        seen_blank = at_start and is_blank
        at_start = text.endswith(b"\n")


def opened(part: Part) -> Any:
    """The file as a binary stream, decompressed where it is compressed.

    Raises `UserError` where it cannot be opened. Reading one that is damaged raises `OSError`, `EOFError` or
    `lzma.LZMAError`.
    """
    import pyarrow as pa

    try:
        if part.compression == "xz":
            import lzma

            return lzma.open(part.path)
        if part.compression:
            return pa.CompressedInputStream(pa.OSFile(os.fsencode(part.path)), part.compression)
        return open(part.path, "rb")
    except OSError as error:
        raise UserError(f"{part.path}: cannot be read ({error.strerror or first_line(error)})") from None
