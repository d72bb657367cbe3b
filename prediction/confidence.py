"""How sure the figures of a report are: intervals, and the comparison with a second file of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.user_code import errors_of_user_code
from metrics.registry import METRICS, TEXTS
from metrics.score import Scores
from metrics.uncertainty.confidence import (
    DRAWS,
    Difference,
    DrawnFigures,
    Interval,
    differences,
    drawn_figures,
    intervals,
)
from postprocessors.base import Postprocessor
from utils.errors import UserError
from utils.tables import format_table


@dataclass(frozen=True)
class Confidence:
    """Intervals of figures at `level`, and how far those of a second file of predictions are from them."""

    level: float
    rows: int  # that have a reference
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    differences: Mapping[str, Difference] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Tables for the terminal."""
        title = f"{self.level * 100:g} % intervals (bootstrap, {DRAWS:,} draws of {self.rows:,} rows)"
        rows = [
            (name, _text(name, self.figures[name]), _text(name, found.low), _text(name, found.high))
            for name, found in self.intervals.items()
        ]
        lines = ["", title, *format_table(("metric", "figure", "from", "to"), rows)]
        lines += [
            f"  {name} is undefined in {found.undefined:,} of the draws"
            for name, found in self.intervals.items()
            if found.undefined
        ]
        if not self.differences:
            return lines
        compared = [
            (
                name,
                _text(name, self.figures[name]),
                _text(name, self.figures[name] + found.value),
                *(_text(name, value) for value in (found.value, found.interval.low, found.interval.high)),
                "undefined" if math.isnan(found.p_value) else f"{found.p_value:.4f}",
            )
            for name, found in self.differences.items()
        ]
        heading = ("metric", "first", "second", "difference", "from", "to", "p")
        return [*lines, "", "the second file less the first (paired bootstrap)", *format_table(heading, compared)]

    def to_dict(self) -> dict[str, Any]:
        """The part of a JSON report; None where a number is undefined."""
        content: dict[str, Any] = {"level": self.level, "draws": DRAWS}
        content["intervals"] = {name: [*map(_known, found[:2])] for name, found in self.intervals.items()}
        if self.differences:
            content["differences"] = {
                name: {
                    "difference": _known(found.value),
                    "interval": [*map(_known, found.interval[:2])],
                    "p_value": _known(found.p_value),
                }
                for name, found in self.differences.items()
            }
        return content


def _text(name: str, value: float) -> str:
    return METRICS[name].text(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def confidence_of(
    level: float,
    scores: Scores,
    references: Sequence[str | None],
    predictions: Sequence[str],
    postprocessor: Postprocessor,
    second: Sequence[str] | None = None,
) -> Confidence:
    """The confidence of what `score` gave of these predictions.

    Args:
        second: other predictions of the same rows, to be compared.

    Raises:
        UserError: no row has a reference, or a metric that cannot be computed of drawn rows.
    """
    place = f"-confidence {level:g}"
    if not scores.scored_rows:
        raise UserError(f"{place}: no row has a reference")
    taken = (TEXTS, postprocessor.kind)
    names = [name for name in scores.metrics if METRICS[name].compute and METRICS[name].takes in taken]

    def drawn(texts: Sequence[str]) -> DrawnFigures:
        return drawn_figures(names, references, texts, postprocessor, scores.correction, scores.max_distance)

    try:
        with errors_of_user_code(place):
            first = drawn(predictions)
            found = intervals(first, scores.scored_rows, level)
            compared = {} if second is None else differences(first, drawn(second), scores.scored_rows, level)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    return Confidence(level, scores.scored_rows, scores.metrics, found, compared)
