"""Encoded rows on disk: token ids and texts of a split, in a memory-mapped Arrow file."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.encoding.arrays import Tokens, gather_ranges
from task_utils import LANGUAGES

# Those of `LANGUAGES` follow where a task gives rows a language.
_COLUMNS = ("source_ids", "target_ids", "source_text", "reference", "row_id", "too_long")


@dataclass
class EncodeReport:
    """What happened to the rows of a split; primitives, kept in the cache so that a cache hit says the same.

    `malformed` maps a reason to [count, places]; `places` maps `truncated_sources`, `truncated_targets` and `discarded`
    to the first places. A place is `file:line` (`file:row` for Parquet and Arrow).
    """

    rows_read: int = 0
    rows_kept: int = 0
    malformed: dict[str, list[Any]] = field(default_factory=dict)
    truncated_sources: int = 0
    truncated_targets: int = 0
    discarded: int = 0
    windowed: int = 0  # rows that are several windows
    windows: int = 0  # of these rows
    missing_targets: int = 0  # rows kept without a reference
    escapes_seen: int = 0
    tokens: int = 0  # without the special ones
    unknown_tokens: int = 0  # of them
    unknown_characters: str = ""  # the first few
    places: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # path -> what was taken as its columns
    columns: dict[str, list[str]] = field(default_factory=dict)  # path -> their names, or the cells of a first row
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Primitives for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> EncodeReport:
        """Inverse of `to_dict`."""
        return cls(**{item.name: state[item.name] for item in fields(cls)})


@dataclass(frozen=True)
class EncodedRows:
    """A chunk of encoded rows, ready to be written. The windows of a row follow one another, with its row id. Every
    chunk has the same `languages`, by the name of the column."""

    source: Tokens
    target: Tokens
    source_text: pa.Array
    reference: pa.Array
    row_ids: np.ndarray
    too_long: np.ndarray
    languages: Mapping[str, pa.Array] = field(default_factory=dict)


def write_rows(path: Path, chunks: Iterable[EncodedRows], dtype: type, languages: Sequence[str] = ()) -> str:
    """Write the chunks, one record batch each, as an Arrow file; returns a digest of all token ids, row by row.

    `languages` are the names of those that the chunks have.
    """
    ids = pa.large_list(pa.from_numpy_dtype(dtype))
    kinds = (ids, ids, pa.large_string(), pa.large_string(), pa.int64(), pa.uint8())
    codes = [(name, pa.large_string()) for name in languages]
    schema = pa.schema([*zip(_COLUMNS, kinds, strict=True), *codes])
    digest = _TokenDigest()
    with pa.OSFile(os.fsencode(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for chunk in chunks:
            digest.add(chunk)
            writer.write_batch(
                pa.record_batch(
                    [
                        pa.LargeListArray.from_arrays(chunk.source.offsets, chunk.source.values),
                        pa.LargeListArray.from_arrays(chunk.target.offsets, chunk.target.values),
                        chunk.source_text,
                        chunk.reference,
                        pa.array(chunk.row_ids),
                        pa.array(chunk.too_long.astype(np.uint8)),
                        *(chunk.languages[name] for name in languages),
                    ],
                    schema=schema,
                )
            )
    return digest.value()


class _TokenDigest:
    """A digest of lengths and token ids, whatever the chunks, the type of the ids, and the version of the file."""

    def __init__(self) -> None:
        self.parts = [hashlib.blake2b(digest_size=20) for _ in range(5)]

    def add(self, chunk: EncodedRows) -> None:
        for side, tokens in enumerate((chunk.source, chunk.target)):
            self.parts[2 * side].update(np.diff(tokens.offsets).astype("<i8").data)
            self.parts[2 * side + 1].update(tokens.values.astype("<i4").data)
        self.parts[4].update(chunk.too_long.astype(np.uint8).data)
        for name, codes in chunk.languages.items():
            self.parts[4].update("".join(f"{name} {code}\n" for code in codes.to_pylist()).encode())

    def value(self) -> str:
        return hashlib.blake2b(b"".join(part.digest() for part in self.parts), digest_size=20).hexdigest()


class _Store:
    """The memory-mapped file behind one or more `EncodedSplit`s."""

    def __init__(self, path: str) -> None:
        self.path = path
        reader = pa.ipc.open_file(pa.memory_map(os.fsencode(path)))
        names = tuple(reader.schema.names)
        if names[: len(_COLUMNS)] != _COLUMNS or not {*names[len(_COLUMNS) :]} <= {*LANGUAGES}:
            raise pa.ArrowInvalid(f"{path}: not a file of encoded rows")
        self.batches = batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.starts = [0]
        for batch in batches:
            self.starts.append(self.starts[-1] + len(batch))
        self.texts = [(batch.column(2), batch.column(3)) for batch in batches]
        self.languages = {name: [batch.column(name) for batch in batches] for name in names[len(_COLUMNS) :]}
        self.ids = tuple([_flat(batch.column(side)) for batch in batches] for side in (0, 1))
        self.lengths = tuple(
            _concatenated([np.diff(offsets) for _, offsets in self.ids[side]], np.int32) for side in (0, 1)
        )
        self.row_ids = _concatenated([_view(batch.column(4)) for batch in batches], np.int64)
        self.too_long = _concatenated([_view(batch.column(5)) for batch in batches], np.bool_)

    def is_valid(self, limits: Sequence[int], highest_id: int) -> bool:
        """Whether every row can be read: types, offsets, nulls, UTF-8, ids of the tokenizer, lengths, row ids."""
        for batch in self.batches:
            batch.validate(full=True)
            for side in (0, 1):
                ids = batch.column(side).values
                low, high = pc.min_max(ids).as_py().values() if len(ids) else (0, 0)
                if ids.type not in (pa.uint16(), pa.int32()) or ids.null_count or low < 0 or high > highest_id:
                    return False
            texts = [pa.large_string()] * len(self.languages)
            if batch.schema.types[2:] != [pa.large_string(), pa.large_string(), pa.int64(), pa.uint8(), *texts]:
                return False
            if any(column.null_count for number, column in enumerate(batch.columns) if number != 3):
                return False
        longest = [int(lengths.max(initial=0)) for lengths in self.lengths]
        fits = all(not limit or length <= limit for limit, length in zip(limits, longest, strict=True))
        ordered = bool((np.diff(self.row_ids, prepend=0) >= 0).all())
        return fits and ordered and int(self.lengths[0].min(initial=1)) > 0

    def row_ids_of(self, side: int, row: int) -> np.ndarray:
        """Token ids (view) of one side of a row."""
        batch = bisect_right(self.starts, row) - 1
        values, offsets = self.ids[side][batch]
        row -= self.starts[batch]
        return values[offsets[row] : offsets[row + 1]]

    def text_of(self, side: int, row: int) -> str | None:
        """Source text (0) or reference (1) of a row."""
        batch = bisect_right(self.starts, row) - 1
        text: str | None = self.texts[batch][side][row - self.starts[batch]].as_py()
        return text

    def language_of(self, name: str, row: int) -> str:
        """The code of a side's language; empty where the rows have none."""
        batch = bisect_right(self.starts, row) - 1
        return str(self.languages[name][batch][row - self.starts[batch]]) if name in self.languages else ""

    def text_digest(self) -> str:
        """A digest of all source texts and references, however they are cut into batches."""
        digests = [hashlib.blake2b(digest_size=20) for _ in range(4)]
        for columns in self.texts:
            for side, column in enumerate(columns):
                lengths = pc.fill_null(pc.binary_length(column), -1)
                digests[2 * side].update(_view(lengths).astype("<i8").data)
                offsets = np.frombuffer(column.buffers()[1], dtype=np.int64)[column.offset :][: len(column) + 1]
                if len(column) and column.buffers()[2] is not None:
                    digests[2 * side + 1].update(memoryview(column.buffers()[2])[offsets[0] : offsets[-1]])
        return hashlib.blake2b(b"".join(part.digest() for part in digests), digest_size=20).hexdigest()


def _flat(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    return _view(column.values), _view(column.offsets)


def _view(array: pa.Array) -> np.ndarray:
    """The numbers of an array without nulls. (`Array.to_numpy` imports pandas, which takes half a second.)"""
    if len(array) == 0:
        return np.empty(0, dtype=array.type.to_pandas_dtype())
    whole: np.ndarray = np.frombuffer(array.buffers()[1], dtype=array.type.to_pandas_dtype())
    return whole[array.offset : array.offset + len(array)]


def _concatenated(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)


def is_valid(path: Path, state: Mapping[str, Any], limits: Sequence[int], highest_id: int) -> bool:
    """Whether the file and the state beside it are what `write_rows` and `EncodeReport` give, whoever wrote them.

    Args:
        limits: the longest source and target in tokens; 0 = none.
        highest_id: the last token of the tokenizer.
    """
    try:
        store = _Store(str(path))
        if not _is_report(state):
            return False
        rows, windows = state["rows_kept"], state["windows"] - state["windowed"]
        has_rows = (len(row_starts(store.row_ids)), len(store.row_ids)) == (rows, rows + windows)
        return has_rows and store.is_valid(limits, highest_id)
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return False


def _is_report(state: Mapping[str, Any]) -> bool:
    """Whether a report of these values can be told."""
    kinds = {item.name: type(getattr(EncodeReport(), item.name)) for item in fields(EncodeReport)} | {"paths": list}
    if any(type(state.get(name)) is not kind for name, kind in kinds.items()) or not isinstance(state["content"], str):
        return False
    lists = [state["paths"], state["notes"], [*state["headers"].values()], *state["places"].values()]
    lists += state["columns"].values()
    for count, places in state["malformed"].values():
        lists.append(places)
        if type(count) is not int:
            return False
    return all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists)


def row_starts(row_ids: np.ndarray) -> np.ndarray:
    """Where each row begins: the windows of one row follow one another."""
    return np.flatnonzero(np.diff(row_ids, prepend=-1))


class EncodedSplit:
    """Encoded rows of a split, memory-mapped; cheap to open, to make views of and to send to other processes.

    With -doc_stride a row may be several windows (`datamodules.encoding.windows`): what stands here for each row then
    does for each window. `source_text` is the whole row's for its first window and empty for the others; the
    windows of a row have no target where the answer is in none of them.

    Per row: `source_lengths` and `target_lengths` (tokens with the special ones, int32), `row_ids` (file order over all
    inputs, int64; gaps where training skipped a malformed row), `too_long` (over a limit although truncation is off:
    its ids are stored cut, training drops it, prediction keeps it).
    """

    def __init__(self, store: _Store, report: EncodeReport, fingerprint: str, rows: np.ndarray | None = None) -> None:
        self._store = store
        self._rows = rows
        self.report = report
        self.fingerprint = fingerprint
        selected = slice(None) if rows is None else rows
        self.source_lengths: np.ndarray = store.lengths[0][selected]
        self.target_lengths: np.ndarray = store.lengths[1][selected]
        self.row_ids: np.ndarray = store.row_ids[selected]
        self.too_long: np.ndarray = store.too_long[selected]

    @classmethod
    def open(cls, path: str | Path, report: EncodeReport, fingerprint: str) -> EncodedSplit:
        """The split in a file written by `write_rows`."""
        return cls(_Store(str(path)), report, fingerprint)

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def num_rows(self) -> int:
        """Rows of the input, however many windows they are."""
        return len(row_starts(self.row_ids))

    @property
    def unit(self) -> str:
        """The word for what stands here: `window` where a row is several, else `row`."""
        return "row" if self.num_rows == len(self) else "window"

    def windows_of(self, rows: np.ndarray) -> np.ndarray:
        """The indices of all windows of some rows, numbers below `num_rows`; without windows the same numbers."""
        bounds = np.append(row_starts(self.row_ids), len(self))
        return gather_ranges(np.arange(len(self)), bounds[rows], np.diff(bounds)[rows])[0]

    def learnable(self) -> EncodedSplit:
        """A view of the rows and windows that have a target."""
        has_target = self.target_lengths > 0
        return self if has_target.all() else self.subset(np.flatnonzero(has_target))

    def subset(self, indices: np.ndarray) -> EncodedSplit:
        """A view of the rows at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        rows = indices if self._rows is None else self._rows[indices]
        digest = hashlib.blake2b(self.fingerprint.encode() + indices.tobytes(), digest_size=20)
        return EncodedSplit(self._store, self.report, digest.hexdigest(), rows)

    def source_ids(self, index: int) -> np.ndarray:
        """Token ids (read-only view, uint16 or int32) of the source of a row."""
        return self._store.row_ids_of(0, self._at(index))

    def target_ids(self, index: int) -> np.ndarray:
        """Token ids (read-only view, uint16 or int32) of the target of a row; empty without a target."""
        return self._store.row_ids_of(1, self._at(index))

    def pairs(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of source and target of each of some rows."""
        return [(self.source_ids(row), self.target_ids(row)) for row in rows.tolist()]

    def source_text(self, index: int) -> str:
        """Text of the source after its template, never cut."""
        return self._store.text_of(0, self._at(index)) or ""

    def reference(self, index: int) -> str | None:
        """Text that predictions are scored against, never cut: of the task's `references`, else the target after its
        template; None when the row has none."""
        return self._store.text_of(1, self._at(index))

    @property
    def has_languages(self) -> bool:
        """Whether the task gives its rows a language, of the source or the target."""
        return bool(self._store.languages)

    def language(self, name: str, index: int) -> str:
        """The code of a row's `source_language` or `target_language`; empty where the task gives its rows none."""
        return self._store.language_of(name, self._at(index))

    def target_languages(self, rows: Iterable[int]) -> list[str]:
        """The codes of the target languages of these rows; none at all where the task gives its rows none."""
        name = LANGUAGES[1]
        return [self.language(name, int(row)) for row in rows] if name in self._store.languages else []

    def reference_codes(self, texts: Sequence[str]) -> np.ndarray:
        """For every row the position of its reference among `texts`; -1 where it is none of them."""
        values = pa.array(texts, pa.large_string())
        found = [pc.fill_null(pc.index_in(column, values), -1) for _, column in self._store.texts]
        codes = _concatenated([_view(part) for part in found], np.int64)
        return codes if self._rows is None else codes[self._rows]

    def text_digest(self) -> str:
        """A digest of the texts that `source_text` and `reference` give; `fingerprint` is that of the token ids."""
        rows = b"" if self._rows is None else self._rows.astype("<i8").tobytes()
        return hashlib.blake2b(self._store.text_digest().encode() + rows, digest_size=20).hexdigest()

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a split of {len(self)} rows")
        return int(index) if self._rows is None else int(self._rows[index])

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._store.path, self.report, self.fingerprint, self._rows)


def _reopened(path: str, report: EncodeReport, fingerprint: str, rows: np.ndarray | None) -> EncodedSplit:
    return EncodedSplit(_Store(path), report, fingerprint, rows)
