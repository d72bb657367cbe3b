"""Batch files of OpenAI's API: which lines are requests, what their sources are, and what is said about the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from config.flags.data import DataFlags, LengthFlags
from datamodules.readers.requests import CHAT, COMPLETIONS, OTHER_MESSAGES, Request, check_requests, request_of
from datamodules.splits import RowEncoder, prediction_split
from task_utils import get_task, override_task
from tests.trained_models import TOKENIZER
from utils.errors import UserError

USER = {"role": "user", "content": "cab"}
NO_USER, NO_TEXT, OTHER_SHAPE = (
    "request without a user message",
    "request with content that is not text",
    "request for n other than 1, stream, logprobs or echo",
)


def chat(custom_id: Any = "a", messages: Any = (USER,), **body: Any) -> dict[str, Any]:
    messages = list(messages) if isinstance(messages, tuple) else messages
    body = {"model": "gpt-4o-mini", "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def completion(prompt: Any, **body: Any) -> dict[str, Any]:
    return {**chat(), "url": COMPLETIONS, "body": {"model": "x", "prompt": prompt, **body}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("value", "text", "problem", "unread"),
    [
        (chat(), "cab", "", ()),
        (chat(n=1, stream=False, logprobs=False, stop=None), "cab", "", ()),
        (chat(max_tokens=5, temperature=0), "cab", "", ("max_tokens", "temperature")),
        (
            chat(messages=({"role": "system", "content": "s"}, user("x"), {"role": "assistant", "content": "y"}, USER)),
            "cab",
            "",
            (OTHER_MESSAGES,),
        ),
        (chat(messages=(user([part("c\n"), part("ab")]),)), "c\n\nab", "", ()),
        (chat(messages=(user(""),)), "", "", ()),
        (completion("cab", max_tokens=3), "cab", "", ("max_tokens",)),
        (chat(messages=({"role": "system", "content": "s"},)), "", NO_USER, ()),
        (chat(messages=()), "", NO_USER, ()),
        (chat(messages="cab"), "", NO_USER, ()),
        (chat(messages=(user([part("cab"), IMAGE]),)), "", NO_TEXT, ()),
        (chat(messages=(user([]),)), "", NO_TEXT, ()),
        (chat(messages=(user(None),)), "", NO_TEXT, ()),
        (chat(messages=(user([{"type": "text", "text": 1}]),)), "", NO_TEXT, ()),
        (completion(["a", "b"]), "", NO_TEXT, ()),
        (chat(n=2), "", OTHER_SHAPE, ()),
        (chat(stream=True), "", OTHER_SHAPE, ()),
        (chat(logprobs=True), "", OTHER_SHAPE, ()),
        (completion("cab", logprobs=0), "", OTHER_SHAPE, ()),
        (completion("cab", echo=True), "", OTHER_SHAPE, ()),
    ],
)
def test_the_source_is_the_last_user_turn(value: Any, text: str, problem: str, unread: tuple[str, ...]) -> None:
    assert request_of(value) == Request("a", value["url"], text, problem, unread)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "broken JSON"),
        ("", "empty line"),
        ('"\udcff"', "invalid UTF-8"),
        ("[]", "not a JSON object"),
        (chat(custom_id=None), "custom_id is missing, or no text"),
        (chat(custom_id=7), "custom_id is missing, or no text"),
        (chat(custom_id=""), "custom_id is missing, or no text"),
        ('{"custom_id": "\\ud800", "method": "POST"}', "custom_id is missing, or no text"),
        ({**chat(), "method": "GET"}, 'method is "GET", not POST'),
        (
            {**chat(), "url": "/v1/responses"},
            'url is "/v1/responses"; /v1/chat/completions and /v1/completions are taken',
        ),
        ({**chat(), "url": ["/v1"]}, 'url is ["/v1"]; /v1/chat/completions and /v1/completions are taken'),
        ({**chat(), "body": None}, "body is missing, or no JSON object"),
    ],
)
def test_a_line_that_cannot_be_answered_is_named(tmp_path: Path, line: Any, reason: str) -> None:
    path = write(tmp_path / "in.jsonl", [chat("b"), line, chat("c")])
    with pytest.raises(UserError) as told:
        check_requests("-test_data", [path])
    assert told.value.problems == (f"-test_data: {path}:2: {reason}",)


def write(path: Path, lines: Sequence[Any]) -> str:
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8", errors="surrogateescape")
    return str(path)


def test_of_many_lines_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", ["{"] * 13)
    with pytest.raises(UserError) as told:
        check_requests("-test_data", [path])
    assert told.value.problems == (
        *(f"-test_data: {path}:{line}: broken JSON" for line in range(1, 11)),
        "-test_data: and 3 more lines",
    )


def test_every_custom_id_occurs_once_in_all_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [chat("a"), chat("b"), chat("a"), chat("c")])
    second = write(tmp_path / "b.jsonl", [chat("d"), chat("c"), chat("b")])
    with pytest.raises(UserError) as told:
        check_requests("-test_data", [first, f"{second}:2"])
    assert told.value.problems == (
        f"-test_data: {first}:3: its custom_id is that of {first}:1 too",
        f"-test_data: {second}:3: its custom_id is that of {first}:2 too",
    )
    assert check_requests("-test_data", [f"{first}:3", f"{second}:2"]) == []
    other = write(tmp_path / "c.jsonl", [chat("a"), "{"])  # a file of requests has no other line, taken or not
    with pytest.raises(UserError) as told:
        check_requests("-test_data", [f"{other}:2"])
    assert told.value.problems == (f"-test_data: {other}:2: broken JSON",)


def test_fields_that_are_not_read_are_counted(tmp_path: Path) -> None:
    lines = [chat(str(number), max_tokens=9, **({"temperature": 1.0} if number else {})) for number in range(3)]
    assert check_requests("-test_data", [write(tmp_path / "in.jsonl", lines)]) == [
        "-openai_batch: not read, as the model and the flags decide: max_tokens (3 requests), temperature (2 requests)"
    ]


def encoder_of(folder: Path, path: str, task: str, **flags: Any) -> RowEncoder:
    data = DataFlags(test_data=(path,), **flags)
    return RowEncoder(data, LengthFlags(), override_task(get_task(task), data), TOKENIZER, 0, folder, None, True)


@pytest.mark.parametrize(
    ("task", "flags", "text"),
    [
        ("seq2seq", {}, "cab"),
        ("nsmc-prompted", {}, "nsmc sentiment classification: cab"),
        ("klue-ner", {}, "task: NER\n\n### 입력\ncab\n"),
        ("klue-re", {"input_template": "re: {{ sentence }}{{ source }}"}, "re: cabcab"),
        ("seq2seq", {"input_template": "review: {{ document }}"}, "review: cab"),
    ],
)
def test_the_text_is_the_column_of_the_task(tmp_path: Path, task: str, flags: dict[str, str], text: str) -> None:
    lines = [chat("a"), chat("b", messages=()), chat("c", messages=(user("\ud800"),))]
    path = write(tmp_path / "in.jsonl", [json.dumps(line) for line in lines])
    split, told = prediction_split(encoder_of(tmp_path, path, task, **flags))
    assert [split.source_text(row) for row in range(3)] == [text.replace("cab", word) for word in ("cab", "", "\ufffd")]
    assert [split.reference(row) for row in range(3)] == [None] * 3
    assert told[:4] == (
        "-test_data: 3 rows read, 3 kept",
        f"-test_data: {path}: requests of an OpenAI batch file",
        f"-test_data: 1 malformed row(s) (lone surrogate), first at {path}:3",
        f"-test_data: 1 malformed row(s) ({NO_USER}), first at {path}:2",
    )


def test_strict_data_stops_at_a_request_that_is_not_answered(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat("a"), chat("b", n=2)])
    encoder = encoder_of(tmp_path, path, "seq2seq", strict_data=True)
    with pytest.raises(UserError) as told:
        prediction_split(encoder)
    assert told.value.problems == (f"{path}:2: {OTHER_SHAPE} (-strict_data)",)


def test_a_task_of_several_columns_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat()])
    with pytest.raises(UserError) as told:
        prediction_split(encoder_of(tmp_path, path, "kornli"))
    assert told.value.problems == (
        "-openai_batch: a request is one text, and -input_template reads sentence1, sentence2; give -input_template"
        " '{{ source }}', and requests whose last user turn is filled in already",
    )
