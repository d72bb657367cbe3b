"""Rows to token ids, once: template, tokenizer, truncation, and a memory-mapped cache keyed by content and settings.

Start at `encode_rows`. The reader runs in the calling thread; chunks are encoded by threads (numpy, Arrow and the Rust
tokenizers release the interpreter lock) and written in file order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.encoding.arrays import Tokens, tokens_of_lists
from datamodules.encoding.cache import open_or_build
from datamodules.encoding.store import EncodedRows, EncodedSplit, EncodeReport, can_open, write_rows
from datamodules.encoding.templates import label_codes, render
from datamodules.encoding.tokens import Encoder, check_limit, make_encoder
from datamodules.readers.paths import Contents, check_data_paths, parse_data_path
from datamodules.readers.read import ReadOptions, RowChunk, RowReport, read_rows
from datamodules.readers.rows import PLACES_KEPT, TEXT
from postprocessors.labels import LabelMap
from task_utils import Task, Template, evaluation_labels
from utils.digests import tokenizer_digest
from utils.errors import UserError, raise_if_any

__all__ = ["EncodeOptions", "EncodeReport", "EncodedSplit", "encode_rows"]

FORMAT_VERSION = 4  # of the cache: raised whenever the same input would be encoded or stored in another way


@dataclass(frozen=True)
class EncodeOptions:
    """How rows become tokens. Limits are tokens with the special ones; 0 = none.

    A row over a limit is cut when `truncate`, else marked `too_long`.
    """

    input_template: str
    target_template: str
    label_map: LabelMap | None
    max_source_length: int
    max_target_length: int
    truncate: bool


def encode_rows(
    flag: str,
    paths: Sequence[str],
    task: Task,
    read_options: ReadOptions,
    encode_options: EncodeOptions,
    tokenizer: Any,
    cache_dir: Path,
    workers: int = 0,
) -> EncodedSplit:
    """The encoded rows of `paths`: from the cache in `cache_dir` if they are there, else encoded by `workers` threads.

    `flag` is the data flag that gave the paths: it chooses splits and opens messages; workers 0 = all cores. Raises
    `UserError`, and leaves nothing behind, when a file cannot be read, a column is missing, a target is not in the
    label map, a label does not fit `-max_target_length`, no row is left, a file changes while it is read, or with
    `strict` at the first malformed row.
    """
    raise_if_any(check_data_paths(flag, paths))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our threads are the parallelism; and forks stay silent
    task = replace(task, label_map=encode_options.label_map, metrics=())
    work = _Work(flag, task, replace(read_options, flag=flag), encode_options, make_encoder(tokenizer))
    if not read_options.keep_all:
        raise_if_any(_unlearnable_labels(work, tokenizer))
    contents = Contents(paths, flag)
    key = _key(contents.digest, work, tokenizer)

    def build(path: Path) -> dict[str, Any]:
        report = EncodeReport(notes=list(work.encoder.notes))
        try:
            content = write_rows(path, _encoded(paths, work, report, workers), work.encoder.dtype)
        except UserError:  # what is wrong may be the change
            contents.check_unchanged()
            raise
        contents.check_unchanged()
        return {"paths": _file_names(paths), "content": content, **report.to_dict()}

    path, state = open_or_build(Path(cache_dir), key, build, can_open)
    return EncodedSplit.open(path, _report_for(state, paths), state["content"])


def _key(content: str, work: _Work, tokenizer: Any) -> str:
    settings = {
        "format": FORMAT_VERSION,
        "content": content,
        "tokenizer": tokenizer_digest(tokenizer),
        "columns": [work.task.source_column, work.task.target_column],
        "read": {**asdict(work.read_options), "flag": ""},
        "encode": {**asdict(work.options), "label_map": work.options.label_map and work.options.label_map.entries},
    }
    if work.options.label_map and work.options.label_map.separator:
        settings["label_separator"] = work.options.label_map.separator
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=20).hexdigest()


def _file_names(paths: Sequence[str]) -> list[str]:
    return [parse_data_path(value).path for value in paths]


def _report_for(state: dict[str, Any], paths: Sequence[str]) -> EncodeReport:
    """The report of the cache; files that were moved since are named as they are now."""
    names = dict(zip(state["paths"], _file_names(paths), strict=True))

    def renamed(place: str) -> str:
        file, colon, line = place.rpartition(":")
        return f"{names.get(file, file)}{colon}{line}"

    report = EncodeReport.from_dict(state)
    report.malformed = {reason: [n, [renamed(p) for p in places]] for reason, (n, places) in report.malformed.items()}
    report.places = {kind: [renamed(place) for place in places] for kind, places in report.places.items()}
    report.headers = {names.get(file, file): header for file, header in report.headers.items()}
    return report


@dataclass
class _Counts:
    """What one chunk adds to the report: reason or kind -> (count, places)."""

    failed: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    lengths: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    missing_targets: int = 0


@dataclass(frozen=True)
class _Labels:
    """Target texts that a label map allows, and their tokens."""

    texts: pa.Array
    tokens: Tokens


class _Work:
    """Everything that the threads need to encode a chunk. Immutable."""

    def __init__(
        self, flag: str, task: Task, read_options: ReadOptions, options: EncodeOptions, encoder: Encoder
    ) -> None:
        self.flag, self.task, self.options, self.encoder = flag, task, options, encoder
        self.input_template = Template(options.input_template, "-input_template")
        self.target_template = Template(options.target_template, "-target_template")
        of_target = self.target_template.variables - self.input_template.variables - {"source", "target"}
        self.read_options = replace(read_options, optional=tuple(sorted(of_target)) if read_options.keep_all else ())
        self.target_column = read_options.target_column or task.target_column
        check_limit(encoder, "-max_seq_length", options.max_source_length)
        check_limit(encoder, "-max_target_length", options.max_target_length)
        if "target" in self.input_template.variables:
            raise UserError(f"-input_template {options.input_template!r}: the source may not hold {{{{ target }}}}")
        labels = evaluation_labels(options.label_map, self.target_template)
        self.labels = None if labels is None else self.encoded_labels(labels.texts)

    @property
    def needed(self) -> frozenset[str]:
        """Columns that the templates read."""
        return self.input_template.variables | self.target_template.variables

    def encoded_labels(self, texts: Sequence[str]) -> _Labels:
        """Texts of labels, or of several joined; `UserError` for one that is too long."""
        array = pa.array(texts, TEXT)
        tokens = self.encoder.encode(array, 0, True)
        limit = self.options.max_target_length
        raise_if_any(
            f"-max_target_length {limit}: label {text!r} has {length} tokens, and labels are never cut"
            for text, length in zip(texts, tokens.full_lengths.tolist(), strict=True)
            if limit and length > limit
        )
        return _Labels(array, tokens)


def _unlearnable_labels(work: _Work, tokenizer: Any) -> Iterator[str]:
    """Labels that the model could not write: two with the same tokens, or one that holds the unknown token."""
    if work.labels is None:
        return
    way_out = "choose other label texts, or a -tokenizer that knows them"
    other_uses = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    unknown = None if tokenizer.unk_token_id in other_uses else tokenizer.unk_token_id
    first: dict[bytes, str] = {}
    for row, text in enumerate(work.labels.texts.to_pylist()):
        ids = work.labels.tokens.row(row)
        if unknown is not None and unknown in ids:
            yield f"-label_map: label {text!r} holds the unknown token {tokenizer.unk_token}; {way_out}"
        same = first.setdefault(ids.tobytes(), text)
        if same != text:
            yield f"-label_map: labels {same!r} and {text!r} have the same tokens with this tokenizer; {way_out}"


def _encoded(paths: Sequence[str], work: _Work, report: EncodeReport, workers: int) -> Iterator[EncodedRows]:
    """Encoded chunks in file order; `report` is whole when the last has been taken."""
    row_report = RowReport()
    chunks = read_rows(paths, work.task, work.needed, work.read_options, row_report)
    for rows, counts in _in_order(chunks, work, workers or len(os.sched_getaffinity(0))):
        for reason, (count, places) in counts.failed.items():
            row_report.add(reason, count, places)
        for kind, (count, places) in counts.lengths.items():
            setattr(report, kind, getattr(report, kind) + count)
            kept = report.places.setdefault(kind, [])
            kept += places[: PLACES_KEPT - len(kept)]
        report.missing_targets += counts.missing_targets
        report.rows_kept += len(rows.row_ids)
        yield rows
    report.rows_read = row_report.rows_read
    report.malformed = {reason: [count, places] for reason, (count, places) in row_report.malformed.items()}
    report.headers, report.escapes_seen = row_report.headers, row_report.escapes_seen
    if work.read_options.keep_all:
        _check_templates(work, report)
    usable = report.rows_kept - report.discarded
    if usable == 0:
        raise UserError(_no_row(work, paths, report))


def _check_templates(work: _Work, report: EncodeReport) -> None:
    """Refuse a template that failed on every row to predict; note one whose columns are not there."""
    labelled = report.rows_kept - report.missing_targets
    for template, rows in ((work.input_template, report.rows_kept), (work.target_template, labelled)):
        failed = [
            (count, reason, places)
            for reason, (count, places) in report.malformed.items()
            if reason.startswith(f"template {template.name}: ")
        ]
        if failed and sum(count for count, _, _ in failed) == rows:
            _, reason, places = failed[0]
            raise UserError(
                f"{template.name} {template.source!r}: fails on every row; first at {places[0]}:"
                f" {reason.partition(': ')[2]}"
            )
    optional = work.read_options.optional
    if optional and not labelled:
        columns = "; ".join(f"{path}: {decision}" for path, decision in report.headers.items())
        report.notes.append(
            f"no row has a reference: {work.target_template.name} needs values in the columns {', '.join(optional)}"
            f" ({columns})"
        )


def _in_order(chunks: Iterable[RowChunk], work: _Work, workers: int) -> Iterator[tuple[EncodedRows, _Counts]]:
    if workers == 1:
        yield from (_encode_chunk(chunk, _rendered(chunk, work), work) for chunk in chunks)
        return
    waiting: deque[Future[tuple[EncodedRows, _Counts]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_encode_chunk, chunk, _rendered(chunk, work), work))
                while len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


Texts = tuple[pa.Array, dict[int, str]]  # of a template for every row, and why it has none


def _rendered(chunk: RowChunk, work: _Work) -> tuple[Texts, Texts | None]:
    """Sources, and references unless labels give them; not in a thread, which no signal stops."""
    sources = render(work.input_template, chunk.columns, len(chunk))
    return sources, None if work.labels else render(work.target_template, chunk.columns, len(chunk))


def _encode_chunk(chunk: RowChunk, rendered: tuple[Texts, Texts | None], work: _Work) -> tuple[EncodedRows, _Counts]:
    counts = _Counts()
    (sources, failures), targets = rendered
    labels, codes = work.labels, None
    if labels is not None and work.options.label_map is not None:
        texts, codes = label_codes(chunk, work.options.label_map, work.target_column)
        labels = work.encoded_labels(texts) if work.options.label_map.separator else labels
        references = labels.texts.take(pa.array(codes, mask=codes < 0))
    else:
        assert targets is not None
        references, target_failures = targets
        failures = {**target_failures, **failures}
    if not work.read_options.keep_all:
        for index in np.flatnonzero(pc.binary_length(sources).to_numpy(zero_copy_only=False) == 0).tolist():
            failures.setdefault(index, "empty source after -input_template")
    row_ids, lines = chunk.row_ids, chunk.lines
    if failures:
        keep = _judge_failures(chunk, failures, work, counts)
        sources, references = sources.filter(pa.array(keep)), references.filter(pa.array(keep))
        row_ids, lines = row_ids[keep], lines[keep]
        codes = None if codes is None else codes[keep]
    source = work.encoder.encode(sources, work.options.max_source_length, False)
    target = _target_tokens(references, labels, codes, work)
    counts.missing_targets = references.null_count
    too_long = _judge_lengths(source, target, chunk.path, lines, work, counts)
    return EncodedRows(source, target, sources, references, row_ids, too_long), counts


def _target_tokens(references: pa.Array, labels: _Labels | None, codes: np.ndarray | None, work: _Work) -> Tokens:
    if references.null_count == len(references):
        return tokens_of_lists([[]] * len(references), [0] * len(references), work.encoder.dtype)
    if labels is not None and codes is not None:
        tokens = labels.tokens
    else:
        tokens = work.encoder.encode(references.drop_null(), work.options.max_target_length, True)
        if references.null_count == 0:
            return tokens
        there = np.asarray(references.is_valid().to_numpy(zero_copy_only=False))
        codes = np.where(there, np.cumsum(there) - 1, -1)
    # A row without a target gets the empty row that is put behind all others.
    offsets = np.append(tokens.offsets, tokens.offsets[-1])
    return Tokens(tokens.values, offsets, np.append(tokens.full_lengths, 0)).rows(codes)


def _judge_failures(chunk: RowChunk, failures: dict[int, str], work: _Work, counts: _Counts) -> np.ndarray:
    """Mask of the rows to keep: training drops a row that a template cannot render, prediction keeps it empty."""
    keep = np.ones(len(chunk), dtype=bool)
    for index in sorted(failures):
        if work.read_options.strict:
            raise UserError(f"{chunk.place(index)}: {failures[index]} (-strict_data)")
        count, places = counts.failed.get(failures[index], (0, []))
        counts.failed[failures[index]] = (count + 1, [*places, chunk.place(index)][:PLACES_KEPT])
        keep[index] = work.read_options.keep_all
    return keep


def _judge_lengths(
    source: Tokens, target: Tokens, path: str, lines: np.ndarray, work: _Work, counts: _Counts
) -> np.ndarray:
    """Count the rows over a limit; mask of those that are too long (only when truncation is off)."""

    def add(kind: str, mask: np.ndarray) -> None:
        if mask.any():
            places = [f"{path}:{lines[row]}" for row in np.flatnonzero(mask)[:PLACES_KEPT]]
            counts.lengths[kind] = (int(mask.sum()), places)

    options = work.options
    long_source = (source.full_lengths > options.max_source_length) & (options.max_source_length > 0)
    long_target = (target.full_lengths > options.max_target_length) & (options.max_target_length > 0)
    too_long = (long_source | long_target) & (not options.truncate)
    if options.truncate or work.read_options.keep_all:
        add("truncated_sources", long_source)
        add("truncated_targets", long_target)
    else:
        add("discarded", too_long)
    return too_long


def _no_row(work: _Work, paths: Sequence[str], report: EncodeReport) -> str:
    reasons = [(count, reason, places) for reason, (count, places) in report.malformed.items()]
    if report.discarded:
        reasons.append((report.discarded, "over a length limit, -do_truncate false", report.places["discarded"]))
    start = f"{work.flag} {' '.join(paths)}: no valid row"
    if not reasons:
        return f"{start}: the file holds no row"
    count, reason, places = max(reasons)
    return f"{start}: of {report.rows_read} row(s) {count} malformed ({reason}), first at {places[0]}"
