"""The files of predictions: plain lines, TSV, JSON lines, or answers to the requests of a batch file, in the order of
the input, written row by row."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datamodules.encoding.store import EncodedSplit
from datamodules.encoding.tokens import make_encoder
from datamodules.readers.csv_json import replaced
from datamodules.readers.encodings import BYTE_ORDER_MARK
from datamodules.readers.requests import CHAT, Request, line_request
from datamodules.readers.rows import text_array
from generation.engines.base import Prediction
from metrics.report import Outputs
from metrics.uncertainty.conformal import NO_SILENCE, Silence
from postprocessors.answers import expected
from postprocessors.base import Postprocessor
from postprocessors.labels import LabelMap
from utils.errors import RunError
from utils.escapes import escape_cell, escape_json, flatten_cell
from utils.files import write_file

COUNTED_TOGETHER = 1024  # answers whose tokens are counted at once
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
    source_tokens: int = 0  # of what the model read, special ones included


@dataclass(frozen=True)
class RequestAnswers:
    """How requests of a batch file are answered."""

    model: str  # the name of the one that answers
    count_tokens: Callable[[Sequence[str]], Sequence[int]]  # of texts, the end token counted

    @classmethod
    def of(cls, models: Iterable[str], tokenizer: Any) -> RequestAnswers:
        """Those of models with one tokenizer."""
        encoder = make_encoder(tokenizer)

        def count_tokens(texts: Sequence[str]) -> Sequence[int]:
            lengths: list[int] = encoder.encode(text_array(map(replaced, texts)), 0, True).full_lengths.tolist()
            return lengths

        return cls(", ".join(models), count_tokens)


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
    requests: RequestAnswers | None = None  # rows are requests, and their records are kept


def write_rows(path: Path, rows: Iterable[OutputRow], form: OutputForm, replace: bool = True) -> None:
    """Write the predictions in the format of the file's ending; the file appears whole or not at all.

    Args:
        replace: whether a file of other content may be replaced, see `write_file`.
    """
    ending = path.suffix.lower()
    lines: Iterator[str]
    if form.requests:
        lines = _answer_lines(rows, form.requests)
    elif ending == ".jsonl":
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


def _answer_lines(rows: Iterable[OutputRow], answers: RequestAnswers) -> Iterator[str]:
    waiting = iter(rows)
    while batch := list(itertools.islice(waiting, COUNTED_TOGETHER)):
        counts = answers.count_tokens([row.answer for row in batch])
        for row, tokens in zip(batch, counts, strict=True):
            try:
                request = line_request(row.record)
            except ValueError as error:
                raise RunError(f"the input has changed: row {row.number:,} is no request ({error})") from error
            yield request_answer(request, row, answers.model, tokens)


def request_answer(request: Request, row: OutputRow, model: str, tokens: int) -> str:
    """The line of an output file of OpenAI's batches for a request whose line is the record of `row`.

    The ids are digests of the request, and the time of creation is 0: the same command gives the same bytes.

    Args:
        tokens: of the answer.
    """
    name = _digest(row.record)
    status, body = 200, _completion(request, row, model, tokens)
    if request.problem:
        told = {"message": request.problem, "type": "invalid_request_error", "param": None, "code": None}
        status, body = 400, {"error": told}
    response = {"status_code": status, "request_id": f"req_{name}", "body": body}
    return _json({"id": f"batch_req_{name}", "custom_id": request.custom_id, "response": response, "error": None})


def answer_to_line(line: bytes, row: OutputRow, answers: RequestAnswers) -> str:
    """The answer to a line of standard input; a line that is no request has no custom_id, and an error for an answer.

    Args:
        row: what was predicted for it.
    """
    record = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace").strip()  # as of a file
    try:
        request = line_request(record)
    except ValueError as problem:
        error = {"code": "invalid_request", "message": str(problem)}
        return _json({"id": f"batch_req_{_digest(record)}", "custom_id": None, "response": None, "error": error})
    (tokens,) = answers.count_tokens([row.answer])
    return request_answer(request, replace(row, record=record), answers.model, tokens)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _completion(request: Request, row: OutputRow, model: str, tokens: int) -> dict[str, Any]:
    """What the API gives: `ChatCompletion` of OpenAI's own libraries, or `Completion`."""
    chat = request.url == CHAT
    message = {"message": {"role": "assistant", "content": row.answer, "refusal": None}}
    choice = {
        "index": 0,
        **(message if chat else {"text": row.answer}),
        "logprobs": None,
        "finish_reason": "length" if row.prediction.cut else "stop",
    }
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{_digest(row.record)}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": row.source_tokens,
            "completion_tokens": tokens,
            "total_tokens": row.source_tokens + tokens,
        },
    }


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
        tokens = int(split.source_lengths[row])
        yield OutputRow(row, split.source_text(row), split.reference(row), answer, prediction, record, tokens)
    if next(own, None) is not None:
        raise RunError(f"the input has changed: it has more than {len(split):,} rows now")
