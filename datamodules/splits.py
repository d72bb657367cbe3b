"""Which rows train, validate and test: from the data flags to encoded splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from config.flags.data import DataFlags, LengthFlags, TrainTaskFlags
from datamodules.class_balance import LabelledRows, check_weighted_tasks, chosen_rows, class_weights, label_lines
from datamodules.encoding.encode import EncodedSplit, EncodeOptions, EncodeReport, encode_rows
from datamodules.readers.columns import other_columns
from datamodules.readers.read import ReadOptions
from datamodules.readers.rows import NO_HEADER
from postprocessors.base import Postprocessor
from task_utils import Task
from utils.errors import UserError, errors_at, raise_if_any, shortened
from utils.escapes import ESCAPES, printable
from utils.tables import counted

# Shares of tokens that the tokenizer does not know; where it knows no word, every other token is the start of a word.
TOLD_UNKNOWN, WARNED_UNKNOWN = 0.01, 0.25
ALL_ROWS = TrainTaskFlags()
SPLIT_SEED = 20260101  # of the proportions; not -seed, so that runs with other seeds keep the same validation rows


@dataclass(frozen=True)
class Splits:
    """The encoded rows of a task by use; a split that was not asked for is None."""

    task: Task
    train: EncodedSplit
    valid: EncodedSplit | None
    test: EncodedSplit | None
    lines: tuple[str, ...]  # what to tell the user: counts, and what was skipped, cut or discarded
    weights: Mapping[str, float] = field(default_factory=dict)  # of the training rows of each label; empty = all 1
    name: str = ""  # of the task, where the run has several
    has_windows: bool = False  # rows may be several windows (-doc_stride), whose answers are put together

    @cached_property
    def postprocessor(self) -> Postprocessor:
        """What the model's texts stand for."""
        return self.task.postprocessor

    def named(self, figure: str) -> str:
        """A figure of this task by its name in the run: `TASK/FIGURE` where there are several."""
        return f"{self.name}/{figure}" if self.name else figure


@dataclass(frozen=True)
class RowEncoder:
    """Encodes the rows of one data flag; the flags, the task and the tokenizer are the same for all of them.

    `position_limit` is the model's own for sources, `target_position_limit` that for targets (tokens; 0 = none,
    None = the same).
    """

    data: DataFlags
    lengths: LengthFlags
    task: Task
    tokenizer: Any
    position_limit: int
    cache_dir: Path
    target_position_limit: int | None = None
    requests: bool = False  # -test_data are batches of requests, see readers/requests.py

    @property
    def source_limit(self) -> int:
        """The longest source in tokens; 0 = none."""
        return _tighter(self.lengths.max_seq_length or self.task.max_seq_length, self.position_limit)

    def encode(self, flag: str, paths: Sequence[str], keep_all: bool) -> EncodedSplit:
        """The rows of `paths`; with `keep_all` (prediction) every row of the input, with or without a target."""
        read, encode = self.options(flag, keep_all)
        return encode_rows(flag, paths, self.task, read, encode, self.tokenizer, self.cache_dir)

    def options(self, flag: str, keep_all: bool) -> tuple[ReadOptions, EncodeOptions]:
        """How rows are read, and how they become tokens."""
        task = self.task
        target_limit = self.position_limit if self.target_position_limit is None else self.target_position_limit
        read = ReadOptions(
            source_column=self.data.source_column,
            target_column=self.data.target_column,
            header=self.data.header,
            tsv_escapes=self.data.tsv_escapes,
            strict=self.data.strict_data,
            keep_all=keep_all,
            target_required=not keep_all,
            requests=self.requests and flag == "-test_data",
            flag=flag,
        )
        encode = EncodeOptions(
            input_template=task.input_template,
            target_template=task.target_template,
            label_map=task.label_map,
            max_source_length=self.source_limit,
            max_target_length=_tighter(self.lengths.max_target_length or task.max_target_length, target_limit),
            truncate=self.lengths.do_truncate,
            references=task.references,
            doc_stride=self.lengths.doc_stride,
        )
        return read, encode


def _tighter(wanted: int, limit: int) -> int:
    """The smaller of two limits where 0 means none."""
    return min(wanted, limit) if wanted and limit else wanted or limit


def task_splits(encoders: Sequence[RowEncoder], flags: TrainTaskFlags) -> tuple[Splits, ...]:
    """The rows of every task of a `train.py` run, told by task where there are several.

    Of these -class_weights and -balance_labels concern those with one label a row.

    Raises:
        UserError: what `training_splits` raises of any of them; a file of class weights that names no task.
    """
    if len(encoders) == 1:
        return (training_splits(encoders[0], flags),)
    check_weighted_tasks(flags.class_weights, [encoder.task.name for encoder in encoders])
    found = []
    for encoder in encoders:
        with errors_at(f"-train_task {encoder.task.name}"):
            found.append(training_splits(encoder, flags, encoder.task.name))
    return tuple(found)


def training_splits(encoder: RowEncoder, flags: TrainTaskFlags = ALL_ROWS, name: str = "") -> Splits:
    """Train, validation and test rows of a task.

    Args:
        name: of the task, where the run has several.

    Raises:
        UserError: no training row is left; and all that reading, encoding, choosing and weighing rows raise.
    """
    data, task, postprocessor = encoder.data, encoder.task, encoder.task.postprocessor
    mixed = bool(name)
    train_paths = data.train_data or (task.hub_dataset,)
    whole = encoder.encode("-train_data", train_paths, keep_all=False)
    lines = report_lines("-train_data", whole.report)
    valid_share = validation_share(data, task)
    train_rows, valid_rows, test_rows = split_rows(whole.num_rows, valid_share, data.test_data_proportions)
    train = _fitting(whole, train_rows, learnable=True)
    if not len(train):
        raise UserError("-train_data: no training row is left after the validation and test rows were set apart")
    labels = LabelledRows.of(train, postprocessor)
    if flags.train_rows:
        balance = flags.balance_labels and not (name and labels is None)
        chosen = chosen_rows(train.num_rows, flags.train_rows, labels, balance)
        train = train.subset(train.windows_of(chosen))
        labels = LabelledRows.of(train, postprocessor)
    valid = _fitting(whole, valid_rows) if valid_share else None
    check_columns("-train_data", encoder, whole.report, whole.report, mixed)
    if data.valid_data:
        other = encoder.encode("-valid_data", data.valid_data, keep_all=False)
        check_columns("-valid_data", encoder, whole.report, other.report, mixed)
        lines += report_lines("-valid_data", other.report)
        valid = _fitting(other, np.arange(other.num_rows))
    if valid is not None and not len(valid.learnable()):
        raise UserError("the validation split has no row; give -valid_data or a larger -valid_data_proportions")
    test = whole.subset(whole.windows_of(test_rows)) if data.test_data_proportions else None
    test_paths = data.test_data or hub_test_rows(data, task)
    if test_paths and not data.test_data_proportions:
        test = encoder.encode("-test_data", test_paths, keep_all=True)
        check_columns("-test_data", encoder, whole.report, test.report, mixed)
        lines += report_lines("-test_data", test.report)
    uses = (("training", train), ("validation", valid), ("test", test))
    counts = [_counted_rows(use, split) for use, split in uses if split]
    of_labels = [*label_lines("training", labels)]
    if valid:
        of_labels += label_lines("validation", LabelledRows.of(valid, postprocessor))
    weights = class_weights(flags.class_weights, labels, name)
    if weights:
        of_labels.append(f"-class_weights: {shortened([f'{text} {weight:.4g}' for text, weight in weights.items()])}")
    told = (*lines, ", ".join(counts), *map(printable, of_labels))
    if name:
        told = tuple(f"{printable(name)}: {line}" for line in told)
    return Splits(task, train, valid, test, told, weights, name, encoder.lengths.doc_stride > 0)


def check_columns(
    flag: str, encoder: RowEncoder, training: EncodeReport, report: EncodeReport, mixed: bool = False
) -> None:
    """Raise `UserError` where columns are taken by their place, and have other names than in the training rows.

    Args:
        mixed: the task is one of several, for which no flag names columns.
    """
    data, task = encoder.data, encoder.task
    asked = {"source": (data.source_column, task.source_column), "target": (data.target_column, task.target_column)}
    places = {name: column for name, (given, column) in asked.items() if not given and isinstance(column, int)}
    named = {path for path, header in {**training.headers, **report.headers}.items() if header != NO_HEADER}
    with errors_at(flag):
        raise_if_any(other_columns(places, training.columns, report.columns, named, mixed))


def prediction_split(encoder: RowEncoder) -> tuple[EncodedSplit, tuple[str, ...]]:
    """The rows that `inference.py` predicts: -test_data, else the test share of -train_data, else -valid_data."""
    data = encoder.data
    if not data.test_data and data.test_data_proportions:
        whole = encoder.encode("-train_data", data.train_data or (encoder.task.hub_dataset,), keep_all=False)
        _, _, rows = split_rows(whole.num_rows, 0.0, data.test_data_proportions)
        return whole.subset(whole.windows_of(rows)), (
            *_not_read(data, "-train_data"),
            *report_lines("-train_data", whole.report),
            f"{len(rows):,} of them are the test rows",
        )
    test_paths = data.test_data or (() if data.valid_data else hub_test_rows(data, encoder.task))
    flag, paths = ("-test_data", test_paths) if test_paths else ("-valid_data", data.valid_data)
    split = encoder.encode(flag, paths, keep_all=True)
    check_columns(flag, encoder, split.report, split.report)
    return split, (*_not_read(data, flag), *report_lines(flag, split.report))


def _not_read(data: DataFlags, flag: str) -> list[str]:
    """What to tell when data are given besides those of `flag`, which are predicted."""
    others = [name for name in ("train_data", "valid_data") if getattr(data, name) and f"-{name}" != flag]
    return [f"{flag} is predicted; {' and '.join(f'-{name}' for name in others)} not"] if others else []


def hub_test_rows(data: DataFlags, task: Task) -> tuple[str, ...]:
    """The task's hub dataset, when no file is given at all: its test split is the test rows."""
    return (task.hub_dataset,) if task.hub_dataset and not data.train_data else ()


def validation_share(data: DataFlags, task: Task) -> float:
    """The share of the training rows that validates: the flag's, else the task's own when no rows are given."""
    return data.valid_data_proportions or (0.0 if data.valid_data else task.valid_proportion)


def split_rows(rows: int, valid_share: float, test_share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint row numbers (train, valid, test), each in file order; a share above 0 gets at least one row.

    The test rows depend on `rows` and `test_share` alone: `inference.py` finds them without the validation share.
    """
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(rows), kind="stable")
    sizes = [max(1, round(rows * share)) if share else 0 for share in (test_share, valid_share)]
    test, valid, train = np.split(order, np.cumsum(sizes))
    return np.sort(train), np.sort(valid), np.sort(test)


def evenly_spaced(rows: int, count: int) -> np.ndarray:
    """Up to `count` of the numbers of `rows` rows, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).round().astype(np.int64))


def _fitting(split: EncodedSplit, rows: np.ndarray, learnable: bool = False) -> EncodedSplit:
    """Those of `rows` that are within the length limits (all of them when longer rows are cut).

    Args:
        learnable: windows without a target are left out.
    """
    windows = split.windows_of(rows)
    fitting = ~split.too_long[windows]
    return split.subset(windows[fitting & (split.target_lengths[windows] > 0) if learnable else fitting])


def _counted_rows(use: str, split: EncodedSplit) -> str:
    of_rows = "" if split.unit == "row" else f" of {counted(split.num_rows, 'row')}"
    return counted(len(split), f"{use} {split.unit}") + of_rows


def report_lines(flag: str, report: EncodeReport) -> list[str]:
    """What happened to the rows of one data flag, a line each, with the first places of what was changed or skipped."""
    lines = [f"{flag}: {report.rows_read:,} rows read, {report.rows_kept:,} kept"]
    lines += [f"{flag}: {path}: {decision}" for path, decision in report.headers.items()]
    for reason, (count, places) in sorted(report.malformed.items()):
        lines.append(f"{flag}: {count:,} malformed row(s) ({reason}), first at {', '.join(places)}")
    cut = (
        ("truncated_sources", report.truncated_sources, "sources truncated"),
        ("truncated_targets", report.truncated_targets, "targets truncated"),
        ("windowed", report.windowed, f"sources too long, cut into {report.windows:,} windows"),
        ("discarded", report.discarded, "rows over a length limit discarded (kept for testing)"),
    )
    for key, count, words in cut:
        if count:
            lines.append(f"{flag}: {count:,} {words}, first at {', '.join(report.places.get(key, []))}")
    if report.missing_targets:
        lines.append(f"{flag}: {report.missing_targets:,} rows without a reference")
    if report.escapes_seen:
        lines.append(f"{flag}: {report.escapes_seen:,} escapes ({ESCAPES}) were read; -tsv_escapes false keeps them")
    lines += [f"{flag}: {note}" for note in (*unknown_share(report), *report.notes)]
    return [printable(line) for line in lines]


def unknown_share(report: EncodeReport) -> list[str]:
    """What to tell when the tokenizer does not know a good part of the texts."""
    share = report.unknown_tokens / max(report.tokens, 1)
    told = f"{report.unknown_tokens:,} of {report.tokens:,} tokens ({share:.1%}) are unknown to the tokenizer"
    letters = f", such as those of {' '.join(report.unknown_characters)}" if report.unknown_characters else ""
    if share > WARNED_UNKNOWN:
        return [
            f"WARNING: {told}{letters}: the model can neither see nor write them; give one whose tokenizer knows them"
        ]
    return [told + letters] if share >= TOLD_UNKNOWN else []
