"""Another kind of output: one class, and scores and reports treat it by what it says of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest

from metrics.labels import CountedRows
from metrics.registry import METRICS, Figure, Metric
from metrics.report import report_dict, report_text
from metrics.score import score
from postprocessors.base import FREE_TEXT, Postprocessor


class WholeNumbers:
    """The first number of an output, at most `max_distance` characters shorter than it."""

    name = "number"
    kind = "integers"
    correction = "first number"
    texts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    longest_texts = ("-999999",)

    def value(self, text: str) -> int | None:
        return int(text) if re.fullmatch("0|-?[1-9][0-9]*", text) else None

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        found = [re.search("0|-?[1-9][0-9]*", text) for text in predictions]
        return [
            number.group()
            if number and (max_distance is None or len(text) - len(number.group()) <= max_distance)
            else None
            for text, number in zip(predictions, found, strict=True)
        ]

    def describe(self) -> str:
        return "whole numbers"


NUMBERS: Postprocessor = WholeNumbers()
REFERENCES, PREDICTIONS = ["0", "12", "7", None, "5"], ["0", "12 won", "9", "about 4", "five"]


def mean_difference(rows: CountedRows, postprocessor: Postprocessor) -> Figure:
    """Of the rows with a number; undefined without one."""
    pairs = zip(rows.references, rows.corrected, strict=True)
    differences = [abs(int(reference) - int(number)) for reference, number in pairs if number is not None]
    mean = sum(differences) / len(differences) if differences else math.nan
    return Figure(mean, f"{len(differences)} rows with {postprocessor.describe()}")


def test_an_output_of_another_kind_is_scored_and_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "difference", Metric("difference", "integers", "mean", mean_difference))
    scores = score(REFERENCES, PREDICTIONS, NUMBERS)
    assert scores.metrics == {"difference": 2 / 3}
    assert scores.invalid_outputs == 3
    assert [(item["output"], item["label"]) for item in scores.corrections] == [
        ("12 won", "12"),
        ("about 4", "4"),
        ("five", None),
    ]
    assert scores.corrected_counts == {"0": 1, "12": 1, "9": 1, "4": 1, None: 1}
    text = report_text(scores)
    assert "predicted integers, as generated: 5 unique" in text
    assert "correction: first number\ninvalid outputs (no number text): 3 of 5" in text
    assert "integers after correction" in text
    assert "  difference           0.6667   3 rows with whole numbers" in text
    limited = score(REFERENCES, PREDICTIONS, NUMBERS, max_distance=4)
    assert limited.corrected_counts == {"0": 1, "12": 1, "9": 1, None: 2}
    assert score(REFERENCES, PREDICTIONS, NUMBERS, correction="none").corrected_counts[None] == 3
    assert score(REFERENCES, PREDICTIONS, NUMBERS, names=["exact_match"]).metrics == {"exact_match": 1 / 4}


def test_an_undefined_figure_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "difference", Metric("difference", "integers", "mean", mean_difference))
    scores = score(["1"], ["five"], NUMBERS)
    assert "  difference          undefined   0 rows with whole numbers\n" in report_text(scores)
    report = report_dict(scores, {})
    assert report["metrics"] == {"difference": None}
    assert report["settings"]["metric_details"] == {"difference": "0 rows with whole numbers"}


def test_metrics_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="metric 'accuracy' needs labels"):
        score(REFERENCES, PREDICTIONS, NUMBERS, names=["accuracy"])


def test_free_text_is_what_it_is() -> None:
    assert FREE_TEXT.correct(["a", ""]) == ["a", ""]
    scores = score(["a", "b"], ["a", ""], names=["exact_match"])
    assert (scores.metrics, scores.invalid_outputs, scores.corrections) == ({"exact_match": 0.5}, 0, [])
