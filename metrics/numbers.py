"""Metrics of numbers: how well predicted ones go with the references, as KLUE-STS and KorSTS are scored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from metrics.labels import CountedRows
from metrics.registry import POINTS, Figure, Metric, register
from postprocessors.numbers import Number

if TYPE_CHECKING:
    from metrics.uncertainty.calibration import Floats

SIMILAR = 3.0  # from here on two sentences are similar (KLUE-STS, Park et al. 2021)


def pearson(references: Sequence[float] | Floats, predictions: Sequence[float] | Floats) -> float:
    """Pearson's correlation, -1 to 1; NaN where it is undefined: fewer than two rows, or all numbers of a side equal.

    Raises:
        ValueError: sides of different length.
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, references, predictions)


def spearman(references: Sequence[float] | Floats, predictions: Sequence[float] | Floats) -> float:
    """Spearman's correlation of the ranks (equal numbers share their mean rank), NaN and errors as of `pearson`."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, references, predictions)


def _correlation(coefficient: Callable[..., Any], references: Any, predictions: Any) -> float:
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references, but {len(predictions)} predictions")
    if len(references) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant sides, which the figure says
        return float(coefficient(references, predictions).statistic)


def similar_f1(references: Sequence[float] | Floats, predictions: Sequence[float] | Floats) -> float:
    """F1 of the rows that are similar, 0 to 1: both sides count from `SIMILAR` on; 0 where no row does."""
    import numpy as np

    wanted, found = np.asarray(references) >= SIMILAR, np.asarray(predictions) >= SIMILAR
    rows = int(wanted.sum() + found.sum())
    return 2 * int((wanted & found).sum()) / rows if rows else 0.0


def _points(measure: Callable[[Floats, Floats], float]) -> Callable[[CountedRows, Number], Figure]:
    """`measure` in points; an output that is no number counts as 0.0, as it stands and not as it is corrected to."""

    def compute(rows: CountedRows, postprocessor: Number) -> Figure:
        import numpy as np

        wanted = [postprocessor.value(text) for text in rows.references]
        if None in wanted:
            raise ValueError(f"reference {rows.references[wanted.index(None)]!r} is no number")
        found = [postprocessor.value(text) for text in rows.predictions]
        unread = sum(count for number, count in zip(found, rows.counts, strict=True) if number is None)
        references, predictions = (
            np.repeat([number or 0.0 for number in numbers], rows.counts) for numbers in (wanted, found)
        )
        figure = 100 * measure(references, predictions)
        details = []
        if unread:
            details.append(f"no number as they stand: {unread:,} of {sum(rows.counts):,}, counted as 0.0")
        outside = sum(
            count for number, count in zip(found, rows.counts, strict=True) if postprocessor.is_outside(number)
        )
        if outside:
            details.append(f"{outside:,} out of bounds, counted as they stand")
        if math.isnan(figure):
            details.append("all numbers of a side are equal" if len(references) > 1 else "a single row")
        return Figure(figure, "; ".join(details))

    return compute


register(
    Metric("pearson", "numbers", "Pearson's correlation with the references", _points(pearson), scale=POINTS),
    Metric("spearman", "numbers", "Spearman's correlation of the ranks", _points(spearman), scale=POINTS),
    Metric("sts_f1", "numbers", "F1 of the rows from 3.0 on (KLUE-STS)", _points(similar_f1), scale=POINTS),
)
