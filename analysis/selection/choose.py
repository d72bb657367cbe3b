"""The rows that a strategy takes, and what is written of them."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.reviews import save_json_lines
from analysis.selection.registry import (
    ONE_LABEL,
    SEVERAL_LABELS,
    STRATEGIES,
    TOKENS,
    VECTORS,
    Candidate,
    Rows,
    Strategy,
    best,
    best_of_groups,
)
from config.flags.data import DataFlags
from config.flags.inference import DecodeFlags, InferenceConfig, InferenceModelFlags, LabelFlags, OutputFlags
from config.flags.select_rows import STRATEGIES as NAMES
from config.flags.select_rows import SelectConfig, SelectFlags
from datamodules.encoding.store import EncodedSplit
from datamodules.readers.nested import MISSING, value_at
from datamodules.readers.records import InputRecords
from datamodules.splits import RowEncoder
from postprocessors.labels import LabelMap
from task_utils import Task
from utils.errors import UserError, shortened
from utils.tables import counted, visible

MOST_GROUPS = 10_000
TOLD_GROUPS = 10
NO_VALUE = "(none)"
SELECTION = "selection"  # the key of what is told of a row


def inference_config(config: SelectConfig) -> InferenceConfig:
    """The prediction whose probabilities are looked at; its finished parts lie beside -save_output."""
    flags = config.select
    return InferenceConfig(
        model=InferenceModelFlags(model=(flags.model,), task=flags.task),
        data=DataFlags(test_data=flags.data, source_column=flags.source_column, target_column=flags.target_column),
        output=OutputFlags(save_output=flags.save_output, overwrite=flags.overwrite),
        decode=DecodeFlags(batch_size=flags.batch_size, max_tokens=flags.max_tokens),
        device=config.device,
    )


def label_flags(flags: SelectFlags) -> LabelFlags:
    return LabelFlags(label_decoding="score", thresholds=flags.thresholds)


def check_strategy(strategy: Strategy, task: Task) -> None:
    """Raise `UserError` where the outputs of the task have no probabilities that the strategy could look at."""
    labels, kind = task.postprocessor, ""
    if isinstance(labels, LabelMap):
        kind = SEVERAL_LABELS if labels.separator else ONE_LABEL
    if strategy.takes in (ONE_LABEL, SEVERAL_LABELS) and strategy.takes != kind:
        fitting = [name for name in NAMES if STRATEGIES[name].takes in (kind, TOKENS, VECTORS)]
        raise UserError(
            f"-strategy {strategy.name} looks at {strategy.takes} a row, and the outputs of task {task.name} are"
            f" {labels.describe()}; for these there are: {', '.join(fitting)}"
        )


def check_rows(strategy: Strategy, split: EncodedSplit) -> None:
    """Raise `UserError` where there is no row to choose from."""
    if not len(split):
        raise UserError("-data: no row to choose from")
    if strategy.needs_references and all(split.reference(row) is None for row in range(len(split))):
        raise UserError(f"-strategy {strategy.name}: no row of -data has a label; give labelled rows")


def rows_of(
    encoder: RowEncoder,
    split: EncodedSplit,
    flags: SelectFlags,
    predictions: Sequence[Any],
    thresholds: tuple[float, ...] = (),
    vectors: np.ndarray | None = None,
) -> Rows:
    """What strategies are given of the rows; nothing is read before they ask."""
    tokenizer, labels = encoder.tokenizer, encoder.task.postprocessor

    def trained() -> Iterator[Any]:
        of_training = encoder.encode("-train_data", flags.train_data, keep_all=True)
        return (of_training.source_ids(row) for row in range(len(of_training)))

    return Rows(
        count=len(split),
        source_ids=split.source_ids,
        reference=split.reference,
        probabilities=lambda row: predictions[row].label_probabilities or (),
        labels=labels if isinstance(labels, LabelMap) else None,
        thresholds=thresholds,
        piece=lambda token: str(tokenizer.decode([token])),
        unknown_id=tokenizer.unk_token_id,
        trained=trained,
        vectors=vectors,
        seed=flags.seed,
    )


@dataclass(frozen=True)
class Groups:
    """The group of every row, by its number, and their names: the values of a column."""

    column: str
    names: Sequence[str]
    of_rows: Sequence[int]

    @classmethod
    def of(cls, column: str, records: Iterator[str]) -> Groups:
        """Those of rows that are JSON objects. 4 bytes a row are kept.

        Raises:
            UserError: a column that the first row does not have, or one of very many values.
        """
        numbers: dict[str, int] = {}
        of_rows = array("i")
        for row, record in enumerate(records):
            content = json.loads(record)
            value = value_at(content, column) if isinstance(content, dict) else MISSING
            if value is MISSING and not row:
                there = shortened(list(content)) if isinstance(content, dict) else "none"
                raise UserError(
                    f"-proportional_to {column}: no such column in the first row; columns there are: {there}"
                )
            name = value if isinstance(value, str) else NO_VALUE if value in (MISSING, None) else json.dumps(value)
            of_rows.append(numbers.setdefault(name, len(numbers)))
            if len(numbers) > MOST_GROUPS:
                raise UserError(
                    f"-proportional_to {column}: more than {MOST_GROUPS:,} different values; give a column with fewer"
                )
        return cls(column, tuple(numbers), of_rows)


def choose(strategy: Strategy, rows: Rows, count: int, groups: Groups | None) -> list[Candidate]:
    """At most `count` rows, best first."""
    candidates = strategy.candidates(rows, count)
    return best_of_groups(candidates, groups.of_rows, count) if groups else best(candidates, count)


def save(
    path: Path,
    chosen: Sequence[Candidate],
    split: EncodedSplit,
    predictions: Sequence[Any],
    texts: Sequence[str],
    records: Iterator[str] | None,
    overwrite: bool,
) -> None:
    """Write a JSON object for each row: its own columns, so that it can be labelled and trained on as it is, and under
    `selection` where it stands and why it was taken. The file appears whole or not at all.

    Args:
        predictions: of all rows; none where nothing was predicted.
        records: the input's own record of every row, as JSON; None where there is none. A row without one, or whose
            record is no object, has `source` and `target`.
    """
    taken = {candidate.row for candidate in chosen}
    read = ((row, json.loads(record)) for row, record in enumerate(records or ()) if row in taken)
    own = {row: content for row, content in read if isinstance(content, dict)}  # a broken line is none

    def content(candidate: Candidate) -> dict[str, Any]:
        row = candidate.row
        why: dict[str, Any] = {"row": row, "score": float(f"{candidate.score:.6g}"), "reason": candidate.reason}
        if predictions:
            found = predictions[row]
            why["prediction"] = found.text
            why["label_probabilities"] = dict(zip(texts, found.label_probabilities, strict=True))
        columns = own.get(row, {"source": split.source_text(row), "target": split.reference(row)})
        return {**columns, SELECTION: why}

    save_json_lines(path, map(content, chosen), overwrite)


def lines(chosen: Sequence[Candidate], rows: int, flags: SelectFlags, groups: Groups | None) -> list[str]:
    """What to tell of the choice."""
    head = f"{len(chosen):,} of {counted(rows, 'row')} chosen by {flags.strategy}"
    if not chosen:
        return [f"{head}: no row fits"]
    told = [f"{head}: scores from {chosen[0].score:.4g} to {chosen[-1].score:.4g}"]
    if groups:
        counts = Counter(groups.of_rows[candidate.row] for candidate in chosen)
        shown = [f"{visible(groups.names[group], 40)} {n:,}" for group, n in counts.most_common(TOLD_GROUPS)]
        more = f", and {counted(len(counts) - TOLD_GROUPS, 'more value')}" if len(counts) > TOLD_GROUPS else ""
        told.append(f"by {groups.column}: {', '.join(shown)}{more}")
    return told


def input_records(flags: SelectFlags, task: Task, split: EncodedSplit, escapes: bool) -> Iterator[str]:
    """The input's own record of every row, as JSON."""
    return InputRecords(flags.data, task.layout).rows(split.report.headers, escapes)
