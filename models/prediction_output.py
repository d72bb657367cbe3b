"""The files of predictions: plain lines, TSV, or JSON lines, in the order of the input, written row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.encoded_split import EncodedSplit
from datamodules.escapes import escape_cell, escape_json, flatten_cell
from models.durable import write_file
from models.predictions import Prediction

COLUMNS = ("id", "source", "reference", "prediction", "score")


@dataclass(frozen=True)
class OutputRow:
    """One row of an output; `answer` is the prediction as it is written: after label correction where that is on."""

    number: int  # from 0, in the order of the input
    source: str
    reference: str | None
    answer: str
    prediction: Prediction
    record: tuple[Any, ...] = ()  # the input's own one, where it is kept


def write_rows(path: Path, rows: Iterable[OutputRow], escapes: bool, labels: Sequence[str], nbest: bool) -> None:
    """Write the predictions in the format of the file's ending; the file appears whole or not at all.

    Args:
        escapes: control characters are written as escapes, else as blanks (plain lines only; TSV always escapes).
        labels: label texts of the probabilities; empty where there are none.
        nbest: whether rows have several outputs.
    """
    ending = path.suffix.lower()
    lines: Iterator[str]
    if ending == ".jsonl":
        lines = (_json(_record(row, labels, nbest)) for row in rows)
    elif ending == ".tsv":
        lines = _tsv_lines(rows, labels, nbest)
    else:
        lines = plain_lines((row.answer for row in rows), escapes)
    write_lines(path, lines)


def plain_lines(texts: Iterable[str], escapes: bool) -> Iterator[str]:
    """A line for each text: line breaks and other control characters as escapes, else as blanks."""
    return (one_line(text, escapes) for text in texts)


def one_line(text: str, escapes: bool) -> str:
    """`text` on one line: line breaks and other control characters as escapes, else as blanks."""
    return escape_cell(text) if escapes else flatten_cell(text)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, UTF-8, durably; half of a surrogate pair, which UTF-8 has no place for, becomes `?`."""
    write_file(path, lambda file: file.writelines(f"{line}\n".encode("utf-8", "replace") for line in lines))


def _json(value: Any) -> str:
    return escape_json(json.dumps(value, ensure_ascii=False))


def _record(row: OutputRow, labels: Sequence[str], nbest: bool) -> dict[str, Any]:
    record = {
        "id": row.number,
        "source": row.source,
        "reference": row.reference,
        "prediction": row.answer,
        "score": row.prediction.score,
        **_more(row.prediction, labels, nbest),
    }
    return {**record, "input": row.record[0]} if row.record else record


def _more(prediction: Prediction, labels: Sequence[str], nbest: bool) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if nbest:
        more["nbest"] = [{"prediction": output.text, "score": output.score} for output in prediction.nbest]
    if labels:
        more["label_probabilities"] = dict(zip(labels, prediction.label_probabilities or (), strict=True))
    return more


def _tsv_lines(rows: Iterable[OutputRow], labels: Sequence[str], nbest: bool) -> Iterator[str]:
    more = [name for name, there in (("nbest", nbest), ("label_probabilities", bool(labels))) if there]
    yield "\t".join((*COLUMNS, *more))
    for row in rows:
        record: Mapping[str, Any] = _record(row, labels, nbest)
        cells = [_cell(record[name]) for name in COLUMNS]
        yield "\t".join((*cells, *(escape_cell(_json(record[name])) for name in more)))


def _cell(value: Any) -> str:
    return "" if value is None else escape_cell(str(value))


def output_rows(
    predictions: Iterable[Prediction],
    split: EncodedSplit,
    answer_of: Callable[[str], str],
    records: Iterator[Any] | None,
) -> Iterator[OutputRow]:
    """The rows of an output in order.

    Args:
        answer_of: what is written for a predicted text.
        records: the input's own record of each row; None keeps none.
    """
    for row, prediction in enumerate(predictions):
        own = () if records is None else (next(records),)
        yield OutputRow(row, split.source_text(row), split.reference(row), answer_of(prediction.text), prediction, own)
