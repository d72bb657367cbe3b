"""How sure a figure is: bootstrap intervals over the rows, and whether two sets of predictions differ. numpy only.

Rows are drawn with replacement, as many as there are, many times over; a figure of drawn rows depends on how often each
row was drawn. The same seed draws the same rows, for both sets of a comparison and on any machine.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metrics.labels import CountedRows, label_tables
from metrics.registry import METRICS, TEXTS, Metric
from metrics.score import correct
from metrics.text import RowSums, scored_blocks
from postprocessors.answers import expected
from postprocessors.base import FREE_TEXT, Postprocessor
from postprocessors.labels import LabelMap

DRAWS = 1000
LEVEL = 0.95
NO_DIFFERENCE = 1e-12  # sums in another order differ by as much

Counts = NDArray[np.int64]  # (rows,) how often each row was drawn
DrawnFigures = Callable[[Counts], dict[str, float]]  # figures of drawn rows by metric, NaN where undefined


class Interval(NamedTuple):
    """The range of a figure; `undefined` is how many of the drawn sets of rows have none."""

    low: float
    high: float
    undefined: int = 0


class Difference(NamedTuple):
    """The second figure less the first, its interval, and how likely one at least as large is if there is none."""

    value: float
    interval: Interval
    p_value: float


def intervals(
    figures: DrawnFigures, rows: int, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """The percentile interval of each figure of `rows` rows (Efron and Tibshirani 1993, section 13.3).

    Raises:
        ValueError: no row, or a level that is not between 0 and 1.
    """
    found = _by_name(map(figures, _drawn(rows, level, draws, seed)))
    return {name: _percentiles(values, level) for name, values in found.items()}


def differences(
    first: DrawnFigures, second: DrawnFigures, rows: int, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """How far each second figure is from the first, of the same rows: paired bootstrap (Koehn 2004).

    The p-value is two-sided: the share of draws whose difference lies at least as far from the mean of all draws as the
    difference itself is from 0, the difference counted with them, as in sacrebleu (Riezler and Maxwell 2005).

    Raises:
        ValueError: no row, or a level that is not between 0 and 1.
    """

    def gained(counts: Counts) -> dict[str, float]:
        before = first(counts)
        return {name: figure - before[name] for name, figure in second(counts).items()}

    found = _by_name(map(gained, _drawn(rows, level, draws, seed)))
    return {
        name: Difference(value, _percentiles(found[name], level), _p_value(value, found[name]))
        for name, value in gained(np.ones(rows, np.int64)).items()
    }


def _drawn(rows: int, level: float, draws: int, seed: int) -> Iterator[Counts]:
    if rows < 1:
        raise ValueError("no row to draw")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    generator = np.random.Generator(np.random.PCG64(seed))
    return (np.bincount(generator.integers(rows, size=rows), minlength=rows) for _ in range(draws))


def _by_name(draws: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for figures in draws:
        for name, figure in figures.items():
            found.setdefault(name, []).append(figure)
    return found


def _percentiles(figures: Sequence[float], level: float) -> Interval:
    known = [figure for figure in figures if not math.isnan(figure)]
    if not known:
        return Interval(math.nan, math.nan, len(figures))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(figures) - len(known))


def _p_value(value: float, drawn: Sequence[float]) -> float:
    known = np.array([figure for figure in drawn if not math.isnan(figure)])
    if math.isnan(value) or not len(known):
        return math.nan
    far = np.abs(known - known.mean()) >= abs(value) - NO_DIFFERENCE
    return float((far.sum() + 1) / (len(known) + 1))


def drawn_figures(
    names: Iterable[str],
    references: Sequence[str | None],
    predictions: Sequence[str],
    postprocessor: Postprocessor = FREE_TEXT,
    correction: str = "nearest",
    max_distance: int | None = None,
) -> DrawnFigures:
    """The metrics `names` of drawn rows, of those that have a reference; `score` says what the arguments are.

    Raises:
        ValueError: a metric that is not computed of these outputs, or of texts and not from sums over the rows.
    """
    parts: dict[str, Callable[[Counts], float]] = {}
    counted: dict[str, Metric] = {}
    for metric in (METRICS[name] for name in names):
        if metric.compute is None or metric.takes not in (TEXTS, postprocessor.kind):
            raise ValueError(f"metric {metric.name!r} is not computed of these outputs")
        if metric.takes == TEXTS:
            parts[metric.name] = _of_sums(metric, references, predictions, postprocessor)
        else:
            counted[metric.name] = metric
    scored = [pair for pair in zip(references, predictions, strict=True) if pair[0] is not None]
    of_values = _of_values(counted, scored, postprocessor, correction, max_distance) if counted else None

    def figures(counts: Counts) -> dict[str, float]:
        found = {name: part(counts) for name, part in parts.items()}
        return found | of_values(counts) if of_values else found

    return figures


def _of_sums(
    metric: Metric, references: Sequence[str | None], predictions: Sequence[str], postprocessor: Postprocessor
) -> Callable[[Counts], float]:
    """The figure of a metric of texts."""
    assert metric.compute is not None
    wanted = (expected(postprocessor, text, "") for text in references if text is not None)
    sums = metric.compute([metric.name], wanted)
    if not isinstance(sums, RowSums):
        raise ValueError(f"metric {metric.name!r} does not follow from sums over the rows")
    blocks = scored_blocks(references, predictions, postprocessor)
    numbers = np.array([row for block in blocks for row in sums.rows(block)], dtype=np.float64)
    return lambda counts: sums.figures((counts @ numbers).tolist())[metric.name]


def _of_values(
    metrics: Mapping[str, Metric],
    pairs: Sequence[tuple[str | None, str]],
    postprocessor: Postprocessor,
    correction: str,
    max_distance: int | None,
) -> DrawnFigures:
    """The figures of metrics of another kind of output: means of the rows', or computed anew of the rows drawn."""
    number = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    place_of = np.array([number[pair] for pair in pairs])
    texts = [text for _, text in number]
    read = dict(zip(texts, correct(texts, postprocessor, correction, max_distance), strict=True))
    means = {
        name: np.array(metric.by_row(CountedRows.of(dict.fromkeys(number, 1), read), postprocessor))
        for name, metric in metrics.items()
        if metric.by_row
    }

    sums = {
        count: _Sums([count(CountedRows.of({pair: 1}, read), postprocessor) for pair in number])
        for count in {metric.counts for metric in metrics.values() if metric.counts}
    }

    def figures(counts: Counts) -> dict[str, float]:
        weights = np.bincount(place_of, weights=counts, minlength=len(number)).astype(np.int64)
        found = {name: float(weights @ values / weights.sum()) for name, values in means.items()}
        drawn_sums = {count: rows.of(weights) for count, rows in sums.items()}
        for metric in metrics.values():
            if metric.counts and metric.of_counts:
                found[metric.name] = metric.of_counts(drawn_sums[metric.counts])
        others = [metric for name, metric in metrics.items() if name not in found]
        if others:
            drawn = {pair: int(weight) for pair, weight in zip(number, weights, strict=True) if weight}
            rows = CountedRows.of(drawn, read)
            taken: tuple[Any, ...] = (rows, postprocessor)
            if isinstance(postprocessor, LabelMap):
                taken = (label_tables(rows, postprocessor),)
            found |= {metric.name: float(metric.compute(*taken).value) for metric in others if metric.compute}
        return {name: found[name] for name in metrics}

    return figures


class _Sums:
    """What each row adds to sums: dataclasses of whole numbers and Counters; all else in them is the same in all."""

    def __init__(self, rows: Sequence[Any]) -> None:
        from scipy.sparse import csr_matrix

        self._first = rows[0]
        self._keys: dict[tuple[str, Any], int] = {}  # (field, key of its Counter or None) -> column
        places, columns, values = [], [], []
        for place, row in enumerate(rows):
            for key, value in self._numbers(row):
                places.append(place)
                columns.append(self._keys.setdefault(key, len(self._keys)))
                values.append(value)
        self._matrix = csr_matrix((values, (places, columns)), shape=(len(rows), len(self._keys)), dtype=np.int64)

    @staticmethod
    def _numbers(row: Any) -> Iterator[tuple[tuple[str, Any], int]]:
        for name, value in vars(row).items():
            if isinstance(value, Counter):
                yield from (((name, key), count) for key, count in value.items())
            elif isinstance(value, int):
                yield (name, None), value

    def of(self, weights: Counts) -> Any:
        """The sums over the rows, each taken as often as its weight says."""
        found = copy.copy(self._first)
        for name, value in vars(self._first).items():
            if isinstance(value, Counter):
                setattr(found, name, Counter())
        for (name, key), total in zip(self._keys, (weights @ self._matrix).tolist(), strict=True):
            if key is None:
                setattr(found, name, total)
            elif total:
                getattr(found, name)[key] = total
        return found
