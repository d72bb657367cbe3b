"""JSON outputs: what can be read, what is recovered, and the figures of both."""

from __future__ import annotations

import math

import pytest

from metrics.score import score
from postprocessors.structured import JsonValue
from task_utils import Task

JSON = JsonValue()
WANTED = '{"name": "김하늘", "tags": ["a", "b"], "age": 3}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (WANTED, WANTED),
        (f"```json\n{WANTED}\n```", WANTED),
        (f"답: {WANTED} 끝", WANTED),
        ('{"name": "김하', '{"name": "김하"}'),  # cut in a text
        ('{"name": "김", "tags": ["a", ', '{"name": "김", "tags": ["a"]}'),
        ('{"name": "김", "tags"', '{"name": "김"}'),
        ('{"name": "a\\"b]', '{"name": "a\\"b]"}'),
        ("[1, 2", "[1, 2]"),
        ("[[1], [2", "[[1], [2]]"),
        ('{"a": 1]', None),
        ('{"a": 1, "a": 2}', None),
        ("[NaN]", None),
        ("3", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_what_stands_in_a_text_is_recovered(text: str, found: str | None) -> None:
    assert JSON.correct([text]) == [found]


def test_no_more_is_changed_than_allowed() -> None:
    text = 'x {"a": [1'
    assert [JSON.correct([text], most) for most in (4, 3)] == [['{"a": [1]}'], [None]]


def test_figures_by_values_and_by_fields() -> None:
    """For fields neither the order of keys nor that of items counts; for a whole value that of items does."""
    references = [WANTED, '{"a": 1}', "[]", '{"b": [1, 2]}']
    predictions = ['{"age": 3, "tags": ["a", "b"], "name": "김하늘"}', '{"a": 1.5', "[]", '{"b": [2, 1]}']
    scores = score(references, predictions, JSON, names=("json_valid", "json_equal", "json_field_f1"))
    assert scores.invalid_outputs == 1
    # fields: 4 + 1 + 0 + 2 on each side; all but `a` are right
    assert scores.metrics == {"json_valid": 0.75, "json_equal": 0.5, "json_field_f1": 6 / 7}
    assert score(references, references, JSON).metrics == dict.fromkeys(scores.metrics, 1.0)
    assert math.isnan(score(["[]"], ["[]"], JSON).metrics["json_field_f1"])
    with pytest.raises(ValueError, match="'1' is no JSON object or list"):
        score(["1"], ["[]"], JSON)


def test_a_task_names_it() -> None:
    task = Task.from_dict({"name": "forms", "postprocessor": "json", "metrics": ["json_equal"]})
    assert task.output == JSON
