"""Batch files of OpenAI's API: a request on each line, whose last user turn is the source of a row."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.readers.columns import Wanted
from datamodules.readers.csv_json import JsonItem, Record, collect, json_items
from datamodules.readers.paths import parse_data_path
from datamodules.readers.rows import RawRows, ReadOptions, RowReport
from utils.errors import UserError, raise_if_any
from utils.escapes import printable
from utils.files import run_error
from utils.tables import counted

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FLAG = "-openai_batch"
OTHER_MESSAGES = "messages besides the last user turn"
MOST_FAULTS = 10  # lines that are told one by one
_DECODER = json.JSONDecoder()
_OTHER_SHAPES = ("stream", "logprobs", "echo")  # fields that ask for an answer that is not one text
_READ = ("model", "messages", "prompt", "n", *_OTHER_SHAPES)


@dataclass(frozen=True)
class Request:
    """One line of a batch file; `text` is its source.

    `problem` is one of `REASONS`: why it is not answered; "" where it is. `unread` are the fields that change nothing.
    """

    custom_id: str
    url: str
    text: str
    problem: str = ""
    unread: tuple[str, ...] = ()


def request_of(value: Any) -> Request:
    """The request in the JSON value of a line; `ValueError` says why it is none, so that no answer could be written."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    custom_id, method, url, body = (value.get(key) for key in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not custom_id or not _is_unicode(custom_id):
        raise ValueError("custom_id is missing, or no text")
    if method != "POST":
        raise ValueError(f"method is {json.dumps(method)[:40]}, not POST")
    if url not in (CHAT, COMPLETIONS):
        raise ValueError(f"url is {json.dumps(url)[:60]}; {CHAT} and {COMPLETIONS} are taken")
    if not isinstance(body, dict):
        raise ValueError("body is missing, or no JSON object")
    messages = body.get("messages") if url == CHAT else None
    messages = messages if isinstance(messages, list) else []
    unread = [key for key, asked in body.items() if key not in _READ and asked is not None]
    unread += [OTHER_MESSAGES] if len(messages) > 1 else []
    text, problem = _text_in(messages) if url == CHAT else _text_of(body.get("prompt"))
    shapes = [body.get(key) for key in _OTHER_SHAPES]  # `logprobs` of a completion may be 0, which asks for some
    if body.get("n") not in (None, 1) or any(asked is not None and asked is not False for asked in shapes):
        problem = problem or "request for n other than 1, stream, logprobs or echo"
    return Request(custom_id, url, "" if problem else text, problem, tuple(unread))


def line_request(line: str) -> Request:
    """The request on a line; `ValueError` says why it is none."""
    try:
        value = _DECODER.decode(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    return request_of(value)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _text_in(messages: list[Any]) -> tuple[str, str]:
    """The text of the last user turn, and what is wrong with it."""
    turns = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    return _text_of(turns[-1].get("content")) if turns else ("", "request without a user message")


def _text_of(content: Any) -> tuple[str, str]:
    """The text of a content, whose parts become a line each, and what is wrong with it."""
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else []
    texts: list[Any] = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if not texts or len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        return "", "request with content that is not text"
    return "\n".join(texts), ""


def text_columns(read: frozenset[str], source: str | int) -> frozenset[str]:
    """The one column that a template reads, `source` by its other name; `UserError` where it reads several.

    Args:
        read: the columns that it reads.
        source: the task's source column.
    """
    if len({"source" if name == source else name for name in read}) > 1:
        raise UserError(
            f"{FLAG}: a request is one text, and -input_template reads {', '.join(sorted(read))}; give -input_template"
            " '{{ source }}', and requests whose last user turn is filled in already"
        )
    return read | {"source"}


def read_requests(
    path: str, wanted: Wanted, needed: frozenset[str], options: ReadOptions, report: RowReport
) -> Iterator[RawRows]:
    """A row for each request; one that is not answered has no source."""
    columns = text_columns(needed - {"target", *options.optional}, wanted.source)
    report.headers[path] = "requests of an OpenAI batch file"
    records = (_record(path, item, columns) for item in json_items(path, True, _DECODER))
    yield from collect(path, records, ["source", "target", *wanted.extra], options)


def _record(path: str, item: JsonItem, columns: frozenset[str]) -> Record:
    line, value, problem = item
    try:
        request = request_of(value)
    except ValueError as error:  # the file has changed since it was checked
        raise UserError(f"{path}:{line}: {problem or error}") from None
    return line, dict.fromkeys(columns, request.text), request.problem


def check_requests(flag: str, paths: Sequence[str]) -> list[str]:
    """What to tell about fields of requests that are not read; every line of the files is looked at.

    Raises:
        UserError: with file:line, lines that are no request; requests with the custom_id of another one.
    """
    unread: Counter[str] = Counter()
    faults = _Faults(flag)
    digests = array("Q")  # of ten million different ids two agree with a probability of 3 in a million
    places: list[tuple[int, str, int]] = []  # of each file: its first request, its name, and every how many-th is taken
    for data_path in map(parse_data_path, paths):
        places.append((len(digests), data_path.path, data_path.shard))
        with run_error(Path(data_path.path)):
            for row, (line, value, problem) in enumerate(json_items(data_path.path, True, _DECODER)):
                try:
                    request = request_of(value)
                except ValueError as error:
                    faults.add(f"{data_path.path}:{line}", problem or str(error))
                    continue
                if problem:
                    faults.add(f"{data_path.path}:{line}", problem)
                if row % data_path.shard == 0:
                    unread.update(request.unread)
                    digest = hashlib.blake2b(request.custom_id.encode(), digest_size=8).digest()
                    digests.append(int.from_bytes(digest, "little"))
    faults.raise_if_any()
    for place, before in _repeated(digests, places):
        faults.add(place, f"its custom_id is that of {before} too")
    faults.raise_if_any()
    told = ", ".join(f"{field} ({counted(count, 'request')})" for field, count in sorted(unread.items()))
    return [printable(f"{FLAG}: not read, as the model and the flags decide: {told}")] if told else []


class _Faults:
    """Lines that cannot be answered: the first ones, and how many there are."""

    def __init__(self, flag: str) -> None:
        self.flag, self.count = flag, 0
        self.told: list[str] = []

    def add(self, place: str, problem: str) -> None:
        self.count += 1
        if len(self.told) < MOST_FAULTS:
            self.told.append(printable(f"{self.flag}: {place}: {problem}"))

    def raise_if_any(self) -> None:
        more = self.count - len(self.told)
        raise_if_any([*self.told, *([f"{self.flag}: and {counted(more, 'more line')}"] if more else [])])


def _repeated(digests: array[int], places: list[tuple[int, str, int]]) -> Iterator[tuple[str, str]]:
    """The file:line of each request whose custom_id an earlier one has, and that of the earlier one."""
    numbers = np.frombuffer(digests, dtype=np.uint64)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])

    def place(row: int) -> str:
        first, path, shard = next(of_file for of_file in reversed(places) if of_file[0] <= row)
        return f"{path}:{(row - first) * shard + 1}"

    for row, before in sorted((int(order[at + 1]), int(order[at])) for at in again):
        yield place(row), place(before)
