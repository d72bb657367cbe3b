"""Figures of groups of rows: which rows are one, and what is wrong with a column."""

from __future__ import annotations

import json

import pytest

from metrics.score import score
from prediction.groups import Groups, group_dict
from utils.errors import UserError

RECORDS = [
    {"from": "ko", "to": {"code": "en"}, "n": 1},
    {"from": "en", "to": {"code": "ko"}, "n": 2},
    {"from": "ko", "to": {"code": "en"}, "n": 3},
    {"from": "ko", "n": None},
]


def groups(*columns: str) -> Groups:
    return Groups.of(columns, map(json.dumps, RECORDS))


def test_rows_are_grouped_by_the_values_of_columns() -> None:
    assert groups("from").rows == {"ko": [0, 2, 3], "en": [1]}
    assert groups("from", "to.code").rows == {"ko, en": [0, 2], "en, ko": [1], "ko, (none)": [3]}
    assert groups("n").rows == {"1": [0], "2": [1], "3": [2], "(none)": [3]}


def test_each_group_is_scored_as_all_rows_are() -> None:
    references, predictions = ["a", "b", "c", None], ["a", "x", "x", "d"]
    found = groups("from").scores(references, predictions, lambda *rows: score(*rows, names=["exact_match"]))
    assert groups("from").lines(found) == [
        "",
        "by from: 2 groups",
        "  from  rows  exact_match",
        "  ko       2       0.5000",
        "  en       1       0.0000",
    ]
    assert group_dict(found) == {
        "ko": {"rows": 2, "metrics": {"exact_match": 0.5}},
        "en": {"rows": 1, "metrics": {"exact_match": 0.0}},
    }
    assert group_dict(groups("n").scores([None] * 4, predictions, score))["1"] == {"rows": 0, "metrics": {}}


def test_a_column_that_is_not_there_or_of_too_many_values_is_refused() -> None:
    with pytest.raises(UserError, match=r"^-group_by x: no such column in the first row; columns there are: from, to"):
        groups("x")
    with pytest.raises(UserError, match=r"^-group_by n: more than 200 different values; give columns with fewer$"):
        Groups.of(("n",), (json.dumps({"n": number}) for number in range(201)))
