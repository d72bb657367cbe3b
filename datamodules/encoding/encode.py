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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datamodules.encoding.cache import open_or_build
from datamodules.encoding.chunks import (
    ChunkEncoder,
    Counts,
    EncodeOptions,
    encode_chunk,
    rendered_texts,
    unlearnable_labels,
)
from datamodules.encoding.store import EncodedRows, EncodedSplit, EncodeReport, is_valid, row_starts, write_rows
from datamodules.encoding.tokens import make_encoder
from datamodules.readers.paths import Contents, check_data_paths, parse_data_path
from datamodules.readers.read import ReadOptions, RowChunk, RowReport, read_rows
from datamodules.readers.rows import PLACES_KEPT
from postprocessors.kinds import postprocessor_dict
from task_utils import Task
from utils.digests import tokenizer_digest
from utils.errors import UserError, raise_if_any
from utils.escapes import printable

__all__ = ["EncodeOptions", "EncodeReport", "EncodedSplit", "encode_rows"]

FORMAT_VERSION = 8  # of the cache: raised whenever the same input would be encoded or stored in another way


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
    work = ChunkEncoder(
        flag, task, replace(read_options, flag=flag), encode_options, make_encoder(tokenizer), tokenizer
    )
    if not read_options.keep_all:
        raise_if_any(unlearnable_labels(work, tokenizer))
    contents = Contents(paths, flag)
    key = _key(contents.digest, work, tokenizer)

    def build(path: Path) -> dict[str, Any]:
        report = EncodeReport(notes=list(work.encoder.notes))
        try:
            rows = _encoded(paths, work, report, workers)
            content = write_rows(path, rows, work.encoder.dtype, list(work.languages.templates))
        except UserError as error:
            contents.check_unchanged()  # what is wrong may be the change
            raise UserError(*map(printable, error.problems)) from None
        contents.check_unchanged()
        return {"paths": _file_names(paths), "content": content, **report.to_dict()}

    def is_whole(path: Path, state: dict[str, Any]) -> bool:
        highest_id = max(len(tokenizer) - 1, *tokenizer.get_vocab().values())
        limits = (encode_options.max_source_length, encode_options.max_target_length)
        return is_valid(path, state, limits, highest_id) and len(state["paths"]) == len(paths)

    path, state = open_or_build(Path(cache_dir), key, build, is_whole)
    return EncodedSplit.open(path, _report_for(state, paths), state["content"])


def _key(content: str, work: ChunkEncoder, tokenizer: Any) -> str:
    settings: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "content": content,
        "tokenizer": tokenizer_digest(tokenizer),
        "columns": [work.task.source_column, work.task.target_column],
        "read": {**asdict(work.read_options), "flag": ""},
        "encode": {**asdict(work.options), "label_map": work.options.label_map and work.options.label_map.entries},
    }
    if work.options.label_map and work.options.label_map.separator:
        settings["label_separator"] = work.options.label_map.separator
    del (
        settings["read"]["blank_targets"],
        settings["read"]["requests"],
        settings["encode"]["references"],
        settings["encode"]["doc_stride"],
    )
    for name, value in (
        ("layout", work.task.layout),
        ("requests", work.read_options.requests),
        ("postprocessor", postprocessor_dict(work.task.output) if work.task.output else None),
        ("references", work.options.references),
        ("placeholders", sorted(work.placeholders)),
        ("windows", [work.options.doc_stride, sorted(work.cutter.variables)] if work.cutter else None),
        ("languages", {name: template.source for name, template in work.languages.templates.items()}),
    ):  # only where they are in use, so that rows of other tasks keep their keys
        settings |= {name: value} if value else {}
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
    report.columns = {names.get(file, file): columns for file, columns in report.columns.items()}
    return report


def _encoded(paths: Sequence[str], work: ChunkEncoder, report: EncodeReport, workers: int) -> Iterator[EncodedRows]:
    """Encoded chunks in file order; `report` is whole when the last has been taken."""
    row_report = RowReport()
    unknown_texts: list[str] = []
    chunks = read_rows(paths, work.task, work.needed, work.read_options, row_report)
    for rows, counts in _in_order(chunks, work, workers or len(os.sched_getaffinity(0))):
        for reason, (count, places) in counts.failed.items():
            row_report.add(reason, count, places)
        for kind, (count, places) in counts.lengths.items():
            setattr(report, kind, getattr(report, kind) + count)
            kept = report.places.setdefault(kind, [])
            kept += places[: PLACES_KEPT - len(kept)]
        report.missing_targets += counts.missing_targets
        report.tokens, report.unknown_tokens = report.tokens + counts.tokens, report.unknown_tokens + counts.unknown
        unknown_texts += counts.unknown_texts[: PLACES_KEPT - len(unknown_texts)]
        report.rows_kept += len(row_starts(rows.row_ids))
        report.windows += counts.windows
        yield rows
    report.rows_read = row_report.rows_read
    report.malformed = {reason: [count, places] for reason, (count, places) in row_report.malformed.items()}
    report.headers, report.columns = row_report.headers, row_report.columns
    report.escapes_seen = row_report.escapes_seen
    report.unknown_characters = work.unknown_characters("".join(unknown_texts))
    if work.read_options.keep_all:
        _check_templates(work, report)
    usable = report.rows_kept - report.discarded
    if usable == 0:
        raise UserError(_no_row(work, paths, report))


def _check_templates(work: ChunkEncoder, report: EncodeReport) -> None:
    """Refuse a template that failed on every row to predict; note one whose columns are not there."""
    labelled = report.rows_kept - report.missing_targets
    of_reference = work.reference_template or work.target_template
    made = {work.input_template: report.rows_kept, work.target_template: labelled, of_reference: labelled}
    for template, rows in made.items():
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
            f"no row has a reference: {of_reference.name} needs values in the columns {', '.join(optional)} ({columns})"
        )


def _in_order(chunks: Iterable[RowChunk], work: ChunkEncoder, workers: int) -> Iterator[tuple[EncodedRows, Counts]]:
    if workers == 1:
        yield from (encode_chunk(chunk, rendered_texts(chunk, work), work) for chunk in chunks)
        return
    waiting: deque[Future[tuple[EncodedRows, Counts]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(encode_chunk, chunk, rendered_texts(chunk, work), work))
                while len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _no_row(work: ChunkEncoder, paths: Sequence[str], report: EncodeReport) -> str:
    reasons = [(count, reason, places) for reason, (count, places) in report.malformed.items()]
    if report.discarded:
        reasons.append((report.discarded, "over a length limit, -do_truncate false", report.places["discarded"]))
    start = f"{work.flag} {' '.join(paths)}: no valid row"
    if not reasons:
        return f"{start}: the file holds no row"
    count, reason, places = max(reasons)
    return f"{start}: of {report.rows_read} row(s) {count} malformed ({reason}), first at {places[0]}"
