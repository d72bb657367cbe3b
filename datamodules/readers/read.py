"""Data files to rows: TSV, CSV, JSON, Parquet, folders of `save_to_disk` and hub names, as Arrow columns of text.

Start at `read_rows`. What is wrong with a row is counted with its place as file:line; what is wrong with a file or a
column is a `UserError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datamodules.readers.arrow import read_stored, stored_table
from datamodules.readers.columns import wanted_columns
from datamodules.readers.csv_json import read_csv, read_json
from datamodules.readers.layouts import READERS, has_layout, read_layout
from datamodules.readers.paths import DataPath, parse_data_path
from datamodules.readers.requests import read_requests
from datamodules.readers.rows import RawRows, ReadOptions, RowChunk, RowReport, finish_rows, take_shard
from datamodules.readers.tsv import read_tsv
from task_utils import Task
from utils.errors import UserError

__all__ = ["ReadOptions", "RowChunk", "RowReport", "read_rows"]


def read_rows(
    paths: Sequence[str], task: Task, needed: frozenset[str], options: ReadOptions, report: RowReport
) -> Iterator[RowChunk]:
    """Rows of all `paths` in order, in chunks of some megabytes; `report` is filled on the way.

    `needed` are the names of further columns that the templates use. Training (`keep_all` false) skips and counts
    malformed rows; prediction gets every row of the input. Raises `UserError` for a file that cannot be read, a column
    that is not there, and with `strict` for the first malformed row.
    """
    next_id = 0
    for value in paths:
        data_path = parse_data_path(value)
        for raw in _raw_rows(data_path, task, needed, options, report):
            selected = take_shard(raw, data_path.shard)
            if len(selected.lines):
                yield finish_rows(selected, options, report, next_id)
                next_id += len(selected.lines)


def _raw_rows(
    data_path: DataPath, task: Task, needed: frozenset[str], options: ReadOptions, report: RowReport
) -> Iterator[RawRows]:
    wanted = wanted_columns(task, needed, options)
    path, layout = data_path.path, task.layout
    try:
        if options.requests:
            yield from read_requests(path, wanted, needed, options, report)
            return
        if has_layout(data_path, layout):
            yield from read_layout(path, layout, READERS[layout].file_rows(path), wanted, options, report)
            return
        match data_path.kind:
            case "tsv":
                yield from read_tsv(path, wanted, options, report)
            case "csv":
                yield from read_csv(path, wanted, options, report)
            case "jsonl" | "json":
                yield from read_json(path, wanted, options, report)
            case _:
                with stored_table(data_path, options.flag) as stored:
                    rows = READERS[layout].table_rows(stored) if layout else None
                    if rows is None:
                        yield from read_stored(stored, wanted, options, report, task.label_map)
                    else:
                        yield from read_layout(stored.name, layout, rows, wanted, options, report)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
