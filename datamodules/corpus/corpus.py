"""A tokenized corpus: documents by number, and its stream of tokens by position, from memory-mapped shards.

Start at `build_corpus`. Memory is that of a few numbers a shard, however large the corpus is.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.corpus.build import Shard, encoded_pieces, lines_before, settings_key
from datamodules.corpus.documents import no_document
from datamodules.corpus.encoders import BYTE_OFFSET, EncoderSpec, OtherIdsError, encoder_specs, id_count
from datamodules.corpus.selection import Selected, Selection, select_documents, selection_file
from datamodules.corpus.shards import INDEX, mapped
from datamodules.corpus.sources import DocumentOptions, Piece, corpus_files, cut_pieces
from datamodules.encoding.arrays import gather_ranges
from datamodules.readers.rows import PLACES_KEPT, RowReport
from utils.digests import tokenizer_digest
from utils.errors import RunError, UserError
from utils.tables import counted

OPEN_SHARDS = 64  # of a process at a time: each is two open files

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StoredShard:
    """The files of a shard, and what the corpus uses of it. `has_starts`: the index is that of a selection."""

    tokens_path: Path
    index_path: Path
    documents: int
    tokens: int  # without end tokens
    has_starts: bool


@dataclass(frozen=True)
class CorpusReport:
    """What a user may want to know of how a corpus came about; `notes` differ from what one would expect."""

    flag: str
    documents: int
    tokens: int  # with end tokens
    text_bytes: int  # of all documents, with those that were left out
    encoder: str
    skipped: dict[str, tuple[int, list[str]]]  # reason -> count, first places
    dropped: dict[str, int]  # documents, by the reason
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line on the corpus, and one for everything that was left out."""
        told = [
            f"{self.flag}: {counted(self.documents, 'document')}, {counted(self.tokens, 'token')}"
            f" ({self.text_bytes / 1e6:,.1f} MB of text, encoded by {self.encoder})"
        ]
        told += [
            f"{self.flag}: {counted(count, 'document')} left out: {reason}" for reason, count in self.dropped.items()
        ]
        for reason, (count, places) in self.skipped.items():
            told.append(f"{self.flag}: {count:,} x {reason}; first at {', '.join(places)}")
        return [*told, *self.notes]


class Corpus:
    """Documents that are token ids, and one stream of them all with the end token behind each document.

    It can be sent to other processes: the shards are opened where they are read. `fingerprint` is that of all ids.
    """

    def __init__(
        self,
        shards: Sequence[StoredShard],
        dtype: str,
        eos: int,
        vocabulary: int,
        fingerprint: str,
        report: CorpusReport,
    ) -> None:
        self._shards, self._dtype, self._eos, self._vocabulary = shards, np.dtype(dtype), eos, vocabulary
        self._first_documents = [*accumulate((shard.documents for shard in shards), initial=0)]
        self._first_tokens = [*accumulate((shard.tokens + shard.documents for shard in shards), initial=0)]
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = OrderedDict()
        self.fingerprint = fingerprint
        self.report = report

    @property
    def num_documents(self) -> int:
        """Documents."""
        return self._first_documents[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream, end tokens included."""
        return self._first_tokens[-1]

    def document(self, number: int) -> Ids:
        """The ids of a document, without special tokens."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of a corpus of {self.num_documents}")
        shard = bisect_right(self._first_documents, number) - 1
        at = number - self._first_documents[shard]
        _, ends, _ = self._arrays(shard)
        first = self._first_tokens[shard]
        return self.tokens(first + (int(ends[at - 1]) if at else 0), first + int(ends[at]) - 1)

    def tokens(self, start: int, stop: int) -> Ids:
        """The ids of the stream from position `start` to `stop`, both at most `num_tokens`.

        Raises:
            RunError: a shard is gone or damaged.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of a corpus of {self.num_tokens}")
        ids: Ids = np.full(stop - start, self._eos, dtype=np.int32)
        shard = bisect_right(self._first_tokens, start) - 1
        while start < stop:
            first = self._first_tokens[shard]
            end = min(stop, self._first_tokens[shard + 1])
            if start < end:  # a shard may hold no document
                self._fill(ids[len(ids) - (stop - start) :], shard, start - first, end - first)
            start, shard = end, shard + 1
        if len(ids) and int(ids.max()) >= self._vocabulary:
            raise RunError(f"a token shard beside {self._shards[0].tokens_path} is damaged; remove its folder")
        return ids

    def _fill(self, ids: Ids, shard: int, start: int, stop: int) -> None:
        """Put the ids of a part of a shard's stream into `ids`, which holds end tokens."""
        tokens, ends, starts = self._arrays(shard)
        places = np.array((start, stop - 1), dtype=INDEX)  # of another type, all ends would be converted
        first, last = np.searchsorted(ends, places, side="right").tolist()
        bounds = ends[first : last + 1].astype(np.int64) - start  # behind the end token of each document
        is_text = np.ones(stop - start, dtype=bool)
        is_text[bounds[bounds <= stop - start] - 1] = False
        if starts is None:
            offset = start - first
            found = tokens[offset : offset + np.count_nonzero(is_text)]
        else:
            begins = np.concatenate([[int(ends[first - 1]) - start if first else -start], bounds[:-1]])
            low, high = np.maximum(begins, 0), np.minimum(bounds - 1, stop - start)
            offsets = starts[first : last + 1].astype(np.int64) + low - begins
            found, _ = gather_ranges(tokens, offsets, np.maximum(high - low, 0))
        ids[: stop - start][is_text] = found
        if self._dtype.itemsize == 1:
            ids[: stop - start][is_text] += BYTE_OFFSET

    def _arrays(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Ids, ends in the stream and, of a selection, first ids of the documents of a shard."""
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = _opened(self._shards[number], self._dtype)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def _opened(shard: StoredShard, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    try:
        tokens = np.asarray(mapped(shard.tokens_path, dtype))
        index = np.asarray(mapped(shard.index_path, INDEX))
        first, second = index[: shard.documents], index[shard.documents :]
        starts, ends = (first, second) if shard.has_starts else (None, first)
        if shard.documents:
            last = int(ends[-1]) - shard.documents if starts is None else int(starts[-1])
            if int(ends[-1]) != shard.tokens + shard.documents or last > len(tokens):
                raise ValueError("the index does not fit")
    except (OSError, ValueError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        with suppress(OSError):  # what has the right size is taken for whole
            shard.tokens_path.with_suffix(".json").unlink(missing_ok=True)
            shard.index_path.unlink(missing_ok=True)
        raise RunError(
            f"the token shard {shard.tokens_path} is gone or damaged ({reason}); the next start writes it anew"
        ) from error
    return tokens, ends, starts


def build_corpus(
    values: Sequence[str],
    options: DocumentOptions,
    selection: Selection,
    tokenizer: Any,
    cache_dir: Path,
    workers: int = 0,
) -> Corpus:
    """The corpus of all files, folders and hub data sets in `values`, encoded by as many processes (0 = all cores).

    What is in `cache_dir` is used. Raises `UserError` and `RunError` as `encoded_pieces` does, and `UserError` where no
    document is left or the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("-tokenizer: has no end token, which separates the documents of -corpus")
    report = RowReport()
    notes: list[str] = []
    pieces = cut_pieces(corpus_files(values, options, report), options)
    *fast, own = encoder_specs(tokenizer)
    digest = tokenizer_digest(tokenizer)
    for spec in (*fast, own):
        folder = Path(cache_dir) / f"tokens-{settings_key(spec, digest, options)}"
        try:
            shards = encoded_pieces(folder, pieces, options, spec, workers, notes)
            break
        except OtherIdsError as error:
            notes.append(
                f"{options.flag}: {error.place}: {spec.name} gives other ids than the tokenizer; all is encoded by the"
                " tokenizer itself, which is slower"
            )
    _merge_skipped(pieces, shards, report)
    if not sum(shard.record.documents for shard in shards):
        raise no_document(values, options, report)
    selected = select_documents(folder, [shard.name for shard in shards], [shard.record for shard in shards], selection)
    return _corpus(values, options.flag, folder, shards, selected, spec, tokenizer, report, notes)


def _corpus(
    values: Sequence[str],
    flag: str,
    folder: Path,
    shards: Sequence[Shard],
    selected: Selected | None,
    spec: EncoderSpec,
    tokenizer: Any,
    report: RowReport,
    notes: list[str],
) -> Corpus:
    stored = []
    for number, shard in enumerate(shards):
        tokens_path = folder / f"{shard.name}.bin"
        if selected is None:
            index, kept = folder / f"{shard.name}.idx", [shard.record.documents, shard.record.tokens]
        else:
            index, kept = selected.folder / selection_file(number), selected.shards[number]
        stored.append(StoredShard(tokens_path, index, kept[0], kept[1], selected is not None))
    documents = sum(shard.documents for shard in stored)
    if not documents:
        raise UserError(f"{flag} {' '.join(values)}: every document is left out ({_reasons(selected)})")
    compared, ties = (sum(getattr(shard.record, name) for shard in shards) for name in ("compared", "ties"))
    if ties:
        notes.append(
            f"{flag}: {ties:,} of {compared:,} documents that were compared with the tokenizer have other pieces of the"
            " same probability"
        )
    content = json.dumps([tokenizer.eos_token_id, *(shard.record.digest for shard in shards)])
    fingerprint = hashlib.blake2b(f"{content}{selected.digest if selected else ''}".encode(), digest_size=20)
    told = CorpusReport(
        flag,
        documents,
        documents + sum(shard.tokens for shard in stored),
        sum(shard.record.text_bytes for shard in shards),
        spec.name,
        report.malformed,
        selected.dropped if selected else {},
        notes,
    )
    return Corpus(stored, spec.dtype, tokenizer.eos_token_id, id_count(tokenizer), fingerprint.hexdigest(), told)


def _reasons(selected: Selected | None) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in (selected.dropped if selected else {}).items())


def _merge_skipped(pieces: Sequence[Piece], shards: Sequence[Shard], report: RowReport) -> None:
    """Count what was skipped in all pieces, with places in the files as they are named now."""
    for piece, shard in zip(pieces, shards, strict=True):
        report.rows_read += shard.record.documents
        for reason, (count, places) in shard.record.skipped.items():
            room = PLACES_KEPT - len(report.malformed.get(reason, (0, []))[1])
            report.add(reason, count, [_place(piece, place) for place in places[:room]])


def _place(piece: Piece, place: str) -> str:
    number, line = map(int, place.split(":"))
    part = piece.parts[number]
    return f"{part.path}:{line + lines_before(part)}" if line else part.path


def rated_values(values: Sequence[str]) -> tuple[list[str], list[float]]:
    """The paths of `PATH[:RATE]`, and their rates where they have any. A path that exists as it stands has none.

    Raises:
        UserError: some have a rate and others not, or a rate is not above 0.
    """
    paths, rates = [], []
    for value in values:
        path, colon, text = value.rpartition(":")
        try:
            rate = float(text) if colon and not os.path.exists(value) else None
        except ValueError:
            rate = None
        if rate is not None and not 0 < rate < float("inf"):
            raise UserError(f"-corpus {value}: the rate behind ':' must be a number above 0")
        paths.append(value if rate is None else path)
        rates += [] if rate is None else [rate]
    if rates and len(rates) < len(values):
        raise UserError(f"-corpus {' '.join(values)}: give every path a rate behind ':', or none")
    return paths, rates
