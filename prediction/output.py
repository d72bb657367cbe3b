"""The files of predictions: plain lines, TSV, or JSON lines, in the order of the input, written row by row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.encoding.store import EncodedSplit
from generation.engines.base import Prediction
from metrics.report import Outputs
from metrics.uncertainty.conformal import NO_SILENCE, Silence
from postprocessors.answers import expected
from postprocessors.base import Postprocessor
from postprocessors.labels import LabelMap
from utils.errors import RunError
from utils.escapes import escape_cell, escape_json, flatten_cell
from utils.files import write_file

COLUMNS = ("id", "source", "reference", "prediction", "score")


@dataclass(frozen=True)
class OutputRow:
    """One row of an output; `answer` is the prediction as it is written: after label correction where that is on."""

    number: int  # from 0, in the order of the input
    source: str
    reference: str | None
    answer: str
    prediction: Prediction
    record: str = ""  # the input's own one, as JSON, where it is kept


@dataclass(frozen=True)
class OutputForm:
    """What is written of each row."""

    escapes: bool = True  # control characters are written as escapes, else as blanks (plain lines; TSV always escapes)
    labels: Sequence[str] = ()  # label texts of the probabilities; empty where there are none
    nbest: bool = False  # whether rows have several outputs
    records: bool = False  # whether the input's own records are written, a JSON value each
    label_ids: Mapping[str, str] = field(default_factory=dict)  # of label texts; empty where there are none
    words: bool = False  # whether the words of the source are written, with what the label loses without each
    probabilities: bool = False  # whether the outputs of a row have some, see prediction/windows.py
    silence: Silence = NO_SILENCE  # the rules of sets of labels and of rows without an answer


def write_rows(path: Path, rows: Iterable[OutputRow], form: OutputForm, replace: bool = True) -> None:
    """Write the predictions in the format of the file's ending; the file appears whole or not at all.

    Args:
        replace: whether a file of other content may be replaced, see `write_file`.
    """
    ending = path.suffix.lower()
    lines: Iterator[str]
    if ending == ".jsonl":
        lines = (_json_line(row, form) for row in rows)
    elif ending == ".tsv":
        lines = _tsv_lines(rows, form)
    else:
        lines = plain_lines((row.answer for row in rows), form.escapes)
    write_lines(path, lines, replace)


def plain_lines(texts: Iterable[str], escapes: bool) -> Iterator[str]:
    """A line for each text: line breaks and other control characters as escapes, else as blanks."""
    return (one_line(text, escapes) for text in texts)


def one_line(text: str, escapes: bool) -> str:
    """`text` on one line: line breaks and other control characters as escapes, else as blanks."""
    return escape_cell(text) if escapes else flatten_cell(text)


def write_lines(path: Path, lines: Iterable[str], replace: bool = True) -> None:
    """Write lines, UTF-8, durably; half of a surrogate pair, which UTF-8 has no place for, becomes `?`."""
    encoded = (f"{line}\n".encode("utf-8", "replace") for line in lines)
    write_file(path, lambda file: file.writelines(encoded), replace=replace)


def _json(value: Any) -> str:
    return escape_json(json.dumps(value, ensure_ascii=False))


def _json_line(row: OutputRow, form: OutputForm) -> str:
    line = _json(record_of(row, form))
    return f'{line[:-1]}, "input": {escape_json(row.record)}}}' if form.records else line


def record_of(row: OutputRow, form: OutputForm) -> dict[str, Any]:
    """A row of a .jsonl file."""
    known = {"label_id": form.label_ids.get(row.answer)} if form.label_ids else {}
    return {
        "id": row.number,
        "source": row.source,
        "reference": row.reference,
        "prediction": row.answer,
        "score": row.prediction.score,
        **known,
        **_more(row.prediction, form),
    }


def _more(prediction: Prediction, form: OutputForm) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if form.probabilities:
        more["probability"] = prediction.nbest[0].probability
    if form.nbest:
        more["nbest"] = [
            {"prediction": output.text, "score": output.score}
            | ({"probability": output.probability} if form.probabilities else {})
            for output in prediction.nbest
        ]
    if form.labels:
        more["label_probabilities"] = dict(zip(form.labels, prediction.label_probabilities or (), strict=True))
    shares = prediction.label_probabilities or ()
    if form.silence.sets:
        more["label_set"] = [form.labels[label] for label in form.silence.sets.labels(shares)]
    if form.silence.answers:
        more["abstained"] = form.silence.abstains(shares)
    if form.words:
        words = prediction.words or ()
        more["highlight"] = max(words, key=lambda pair: pair[1])[0] if words else None  # of equal ones the first
        more["words"] = [{"word": word, "loss": loss} for word, loss in words]
    return more


def _tsv_lines(rows: Iterable[OutputRow], form: OutputForm) -> Iterator[str]:
    there = {
        "probability": form.probabilities,
        "nbest": form.nbest,
        "label_probabilities": form.labels,
        "label_set": form.silence.sets,
        "abstained": form.silence.answers,
        "highlight": form.words,
        "words": form.words,
    }
    more = [name for name, wanted in there.items() if wanted]
    ending = ["input"] if form.records else []
    yield "\t".join((*COLUMNS, *more, *ending))
    for row in rows:
        record: Mapping[str, Any] = record_of(row, form)
        cells = [_cell(record[name]) for name in COLUMNS]
        values = [*(_json(record[name]) for name in more), *(escape_json(row.record) for _ in ending)]
        yield "\t".join((*cells, *map(escape_cell, values)))


def _cell(value: Any) -> str:
    return "" if value is None else escape_cell(str(value))


def label_ids(postprocessor: Postprocessor) -> dict[str, str]:
    """Label text -> id in the data; empty where a row has no label or may have several."""
    if not isinstance(postprocessor, LabelMap) or postprocessor.separator:
        return {}
    return {text: label_id for label_id, text in postprocessor.entries}


def outputs_of(split: EncodedSplit, predictions: Iterable[Prediction], postprocessor: Postprocessor) -> Outputs:
    """What the report shows of the rows themselves."""

    def wanted(row: int, text: str) -> str | None:
        reference = split.reference(row)
        return None if reference is None else expected(postprocessor, reference, text)

    rows = ((wanted(row, found.text), found.text, found.cut) for row, found in enumerate(predictions))
    return Outputs.of(rows, split.source_text)


def output_rows(
    predictions: Iterable[Prediction],
    split: EncodedSplit,
    answer_of: Callable[[str], str],
    records: Iterable[str] | None,
    silence: Silence = NO_SILENCE,
) -> Iterator[OutputRow]:
    """The rows of an output in order.

    Args:
        answer_of: what is written for a predicted text.
        records: the input's own record of each row, as JSON; None keeps none.
        silence: rules by which the answer of a row is the empty text.

    Raises:
        RunError: fewer or more records than rows, of an input that has changed.
    """
    own = iter(itertools.repeat("", len(split)) if records is None else records)
    for row, prediction in enumerate(predictions):
        record = next(own, None)
        if record is None:
            raise RunError(f"the input has changed: row {row:,} is no longer in it")
        answer = "" if silence.abstains(prediction.label_probabilities) else answer_of(prediction.text)
        yield OutputRow(row, split.source_text(row), split.reference(row), answer, prediction, record)
    if next(own, None) is not None:
        raise RunError(f"the input has changed: it has more than {len(split):,} rows now")
