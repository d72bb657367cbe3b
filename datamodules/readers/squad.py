"""Reading comprehension in the layout of SQuAD (1.1, 2.0, KorQuAD, KLUE-MRC): a row for each question."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from datamodules.readers.arrow import Stored, stored_rows
from datamodules.readers.csv_json import (
    JsonItem,
    after_blanks,
    array_items,
    json_items,
    line_at,
    starts_with,
    whole_text,
)
from datamodules.readers.rows import ANSWER_STARTS, KEPT, REASONS, LayoutRow, stringified
from utils.errors import UserError, shortened

EXPECTED = (
    'layout squad: expected {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question":'
    ' ..., "answers": [{"text": ...}]}]}]}]}'
)
STORED = ("id", "guid", "title", "context", "question", "answers", "is_impossible")  # in a hub data set
_DECODER = json.JSONDecoder()


def file_rows(path: str) -> Iterator[LayoutRow]:
    """The questions of a file: those of its articles, or of rows as the hub has them, in JSON lines or an array.

    Raises `UserError` where the file has another layout, or is broken.
    """
    has_articles = path.lower().endswith(".json") and not starts_with(path, b"[")
    return _questions(path) if has_articles else _flat_rows(path)


def _flat_rows(path: str) -> Iterator[LayoutRow]:
    is_first = True
    for line, value, problem in json_items(path, True, _DECODER):
        question = value if isinstance(value, dict) else {}
        if is_first and question and not {"context", "question"} <= question.keys():
            raise UserError(
                f"{path}:{line}: {EXPECTED}, or rows with these keys; not the keys {shortened([*question])}"
            )
        is_first = is_first and not question
        row = _row(line, question)
        yield replace(row, problem=problem or (row.problem if value is question else "not a JSON object"))


def _questions(path: str) -> Iterator[LayoutRow]:
    """A row's line is that of the question's id, and of its article once an id was not found; in a file of one line it
    is the question's number."""
    text = whole_text(path)
    on_one_line = "\n" not in text.strip()
    position, line, number = 0, 1, 0
    has_ids = True
    for article_line, article, _ in _articles(path, text):
        place = f"{path}:{article_line}"
        title = article.get("title") if isinstance(article, dict) else None
        for paragraph in _list_in(article, "paragraphs", place):
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            for question in _list_in(paragraph, "qas", place):
                if not isinstance(question, dict):
                    raise UserError(f"{place}: {EXPECTED}; a question is no object")
                number += 1
                found = text.find(json.dumps(_identity(question), ensure_ascii=False), position) if has_ids else -1
                has_ids = found >= 0  # each search for one that is not there would go through the whole file
                if has_ids:
                    line, position = line + text.count("\n", position, found), found
                told = number if on_one_line else line if has_ids else article_line
                yield _row(told, {"title": title, "context": context, **question})


def table_rows(stored: Stored) -> Iterator[LayoutRow] | None:
    """The questions of a hub data set, a row each; None where its columns are others."""
    if not {"context", "question"} <= set(stored.schema.names):
        return None
    return (_row(number, row) for number, row in stored_rows(stored, STORED))


def _articles(path: str, text: str) -> Generator[JsonItem, None, None]:
    """The elements of the list `data`, one at a time, with the line where each starts."""
    position = after_blanks(text, 0)
    if text[position : position + 1] != "{":
        raise _other_layout(path, text, position)
    has_data, mark = False, "{"
    while mark in ("{", ","):
        key, position = _decoded(path, text, after_blanks(text, position + 1))
        position = after_blanks(text, position)
        if not isinstance(key, str) or text[position : position + 1] != ":":
            raise _other_layout(path, text, position)
        position = after_blanks(text, position + 1)
        if key == "data" and text[position : position + 1] == "[":
            has_data = True
            position = yield from array_items(path, text, position + 1, _DECODER)
        else:
            _, position = _decoded(path, text, position)
        position = after_blanks(text, position)
        mark = text[position : position + 1]
    if mark != "}" or text[position + 1 :].strip() or not has_data:
        raise _other_layout(path, text, position)


def _decoded(path: str, text: str, position: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        raise _other_layout(path, text, position) from None


def _other_layout(path: str, text: str, position: int) -> UserError:
    return UserError(f"{path}:{line_at(text, position)}: {EXPECTED}, not {text[position : position + 40]!r}")


def _list_in(value: Any, key: str, place: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{place}: {EXPECTED}; {key!r} is missing, or no list")
    return found


def _identity(question: Mapping[str, Any]) -> Any:
    return question.get("id", question.get("guid", ""))


def _row(line: int, question: dict[str, Any]) -> LayoutRow:
    """The columns of a question with its title and its passage, and what is wrong with it."""
    columns = {"id": _identity(question), **{name: question.get(name) for name in ("title", "context", "question")}}
    problem = "missing column" if columns["context"] is None or columns["question"] is None else ""
    texts, wrong = stringified(list(columns.values()))
    values = dict(zip(columns, texts, strict=True))
    try:
        golds, starts = _golds(question)
    except (TypeError, KeyError, AttributeError):
        golds, starts, wrong = None, [], [*wrong, len(wrong)]
    values["answer"] = None if golds is None else "".join(golds[:1])
    values["answers"] = None if golds is None else json.dumps(golds, ensure_ascii=False)
    values[ANSWER_STARTS] = None if golds is None else json.dumps(starts)
    if wrong:
        problem = problem or "value is not text"
    elif any(gold not in (values["context"] or "") for gold in golds or ()):
        problem = problem or REASONS[KEPT]
    return LayoutRow(line, values, problem, question)


def _golds(question: Mapping[str, Any]) -> tuple[list[str] | None, list[int | None]]:
    """The texts of all answers, and where they begin in the passage (None where that is not told).

    There are none of a question that has no answer; None stands for those of one whose answers are not told.

    The hub's copy of KLUE has plausible answers, which are none, among those of impossible questions.
    """
    if question.get("is_impossible") is True:
        return [], []
    answers = question.get("answers")
    if answers is None:
        return None, []
    if isinstance(answers, dict):
        texts, starts = answers["text"], answers.get("answer_start") or []
    else:
        texts, starts = ([answer["text"] for answer in answers], [answer.get("answer_start") for answer in answers])
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError
    return list(texts), [start if isinstance(start, int) else None for start in starts]
