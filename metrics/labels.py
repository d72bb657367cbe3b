"""Metrics of labels and the tables behind them: per class, averages, which label was taken for which."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metrics.f1 import f1, mean
from metrics.registry import FRACTION, LABELS, POINTS, Figure, Metric, register
from postprocessors.labels import LabelMap

INVALID = "(invalid)"
NO_RELATION = "no_relation"
DENSE_MATRIX_LABELS = 200  # up to here the confusion matrix has a cell for each pair of labels


@dataclass(frozen=True)
class CountedRows:
    """The different scored rows: reference, prediction, the label it is corrected to, and how often each occurs."""

    references: tuple[str, ...]
    predictions: tuple[str, ...]
    corrected: tuple[str | None, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, pairs: Mapping[tuple[str | None, str], int], label_of: Mapping[str, str | None]) -> CountedRows:
        """Of counted (reference, prediction) pairs; a reference of None is left out."""
        rows = [(ref, text, label_of[text], count) for (ref, text), count in pairs.items() if ref is not None]
        return cls(*zip(*rows, strict=True)) if rows else cls((), (), (), ())

    def share_equal(self, texts: Sequence[str | None]) -> float:
        """Share of the rows whose text is their reference."""
        rows = zip(self.references, texts, self.counts, strict=True)
        return sum(count for reference, text, count in rows if reference == text) / sum(self.counts)


@dataclass(frozen=True)
class LabelTables:
    """What label metrics are computed from: the rows, and the fields of `Scores` with the same names."""

    rows: CountedRows
    label_map: LabelMap
    per_class: list[dict[str, Any]]
    averages: list[dict[str, Any]]
    confusion_matrix: dict[str, Any] | None

    def average_f1(self, average: str) -> float:
        """F1 of the line `macro` or `micro`."""
        return float(next(row["f1"] for row in self.averages if row["label"] == average))


def label_tables(rows: CountedRows, label_map: LabelMap) -> LabelTables:
    """The tables of at least one row; every pair of row and label is a decision.

    Raises:
        ValueError: a reference that is no label text.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    labels = label_map.texts
    strangers = {text for text in set(rows.references) if label_map.value(text) is None}
    if strangers:
        raise ValueError(f"reference {min(strangers)!r} is no label text; known: {label_map.describe()}")
    number = {label: index for index, label in enumerate(labels)}

    def decisions(texts: Sequence[str | None]) -> Any:
        """(rows, labels), 1 where the text names the label."""
        named = [label_map.value(text or "") or () for text in texts]
        columns = [number[label] for found in named for label in found]
        starts = np.cumsum([0, *map(len, named)])
        return csr_matrix((np.ones(len(columns), np.int64), columns, starts), shape=(len(texts), len(labels)))

    true, guess, counts = decisions(rows.references), decisions(rows.corrected), np.array(rows.counts)
    right, told, there = (side.T @ counts for side in (true.multiply(guess), guess, true))  # (labels,)
    occurring = told + there > 0

    def shares(right: Any, told: Any, there: Any) -> list[Any]:
        """Precision, recall and F1; 0 of nothing, as scikit-learn has them with zero_division=0."""
        parts = ((right, told), (right, there), (2 * right, told + there))
        return [np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole > 0) for part, whole in parts]

    columns = shares(right, told, there)
    averages = {
        "macro": [column[occurring].mean() for column in columns],
        "micro": shares(*(np.array(side.sum()) for side in (right, told, there))),
    }
    return LabelTables(
        rows,
        label_map,
        per_class=[
            _class_row(label, [column[index] if occurring[index] else None for column in columns], there[index])
            for index, label in enumerate(labels)
        ],
        averages=[_class_row(name, values, int(there.sum())) for name, values in averages.items()],
        confusion_matrix=None if label_map.separator else confusion_matrix(rows, labels),
    )


def confusion_matrix(rows: CountedRows, labels: Sequence[str]) -> dict[str, Any]:
    """Which label was taken for which: {labels, columns, rows}, or of many labels {pairs}, those that occur.

    `columns` are the labels and `INVALID`; a pair is {reference, prediction, count}, the most frequent first.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for reference, label, count in zip(rows.references, rows.corrected, rows.counts, strict=True):
        pairs[reference, INVALID if label is None else label] += count
    if len(labels) > DENSE_MATRIX_LABELS:
        return {"pairs": _pair_rows(pairs)}
    columns = [*labels, INVALID]
    return {
        "labels": list(labels),
        "columns": columns,
        "rows": [[pairs[label, column] for column in columns] for label in labels],
    }


def confused_pairs(matrix: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs of a confusion matrix that occur, of either form."""
    if "pairs" in matrix:
        return list(matrix["pairs"])
    rows = zip(matrix["labels"], matrix["rows"], strict=True)
    counts = {
        (label, column): count
        for label, row in rows
        for column, count in zip(matrix["columns"], row, strict=True)
        if count
    }
    return _pair_rows(Counter(counts))


def _pair_rows(pairs: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    keys = ("reference", "prediction", "count")
    return [dict(zip(keys, (*pair, count), strict=True)) for pair, count in pairs.most_common()]


def _class_row(label: str, numbers: Sequence[Any], support: Any) -> dict[str, Any]:
    """A line of the per-class table; None where the label neither occurs nor is predicted."""
    values = [None if value is None else float(value) for value in numbers]
    return dict(zip(("label", "precision", "recall", "f1", "support"), (label, *values, int(support)), strict=True))


def _accuracy(tables: LabelTables) -> Figure:
    return Figure(tables.rows.share_equal(tables.rows.predictions))


def _accuracy_corrected(tables: LabelTables) -> Figure:
    return Figure(tables.rows.share_equal(tables.rows.corrected))


def _is_right(rows: CountedRows, *_: Any) -> Sequence[float]:
    return [reference == text for reference, text in zip(rows.references, rows.predictions, strict=True)]


def _is_right_corrected(rows: CountedRows, *_: Any) -> Sequence[float]:
    return [reference == text for reference, text in zip(rows.references, rows.corrected, strict=True)]


def _macro_f1(tables: LabelTables) -> Figure:
    return Figure(tables.average_f1("macro"))


def _micro_f1(tables: LabelTables) -> Figure:
    return Figure(tables.average_f1("micro"))


@dataclass
class LabelCounts:
    """Sums over rows, by label: decisions that are right, that references hold, and that outputs hold."""

    right: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    strangers: int = 0  # parts of outputs that are no label and were left out
    undefined: int = 0  # rows for which the figure is undefined

    def add(self, wanted: set[str], found: set[str], count: int) -> None:
        """Take in `count` rows: the labels of the reference and of the output."""
        for total, labels in ((self.right, wanted & found), (self.expected, wanted), (self.given, found)):
            total.update(dict.fromkeys(labels, count))

    def macro_f1(self) -> float:
        """Mean over the labels on either side."""
        labels = self.expected.keys() | self.given.keys()
        return mean(f1(self.right[label], self.expected[label], self.given[label]) for label in labels)

    def micro_f1(self) -> float:
        """Over all decisions; 0 without any."""
        return math.nan if self.undefined else f1(self.right.total(), self.expected.total(), self.given.total())

    def weighted_f1(self) -> float:
        """Mean over the labels, weighted by the rows whose reference has them; 0 where no reference has any."""
        labels = self.expected.items()
        total = sum(support * f1(self.right[label], support, self.given[label]) for label, support in labels)
        return total / (self.expected.total() or 1)


def _corrected_counts(rows: CountedRows, label_map: LabelMap) -> LabelCounts:
    """Of the corrected outputs; one that is still no label has none."""
    counts = LabelCounts()
    for reference, label, count in zip(rows.references, rows.corrected, rows.counts, strict=True):
        counts.add(set(label_map.value(reference) or ()), set(label_map.value(label or "") or ()), count)
    return counts


def _klue_counts(rows: CountedRows, label_map: LabelMap) -> LabelCounts:
    """Of the raw outputs: those that are no label make one class more, which no reference has."""
    counts = LabelCounts()
    for reference, text, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        counts.add({reference}, {INVALID if label_map.value(text) is None else text}, count)
    return counts


def _relation_counts(rows: CountedRows, label_map: LabelMap) -> LabelCounts:
    """Of the raw outputs, all labels but `no_relation`, the id or text of one of them."""
    none = label_map.lookup(NO_RELATION)
    relations = set(label_map.texts) - {none}
    counts = LabelCounts(undefined=sum(rows.counts) if none is None else 0)
    for reference, text, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        counts.add({reference} & relations, {text} & relations, count)
    return counts


def _named(reference: str, text: str, label_map: LabelMap) -> tuple[set[str], set[str], int]:
    """The labels of a reference and of a raw output, and how many parts of the output are none.

    Order, blanks and repetition do not count, and parts that are no label are left out, as scikit-learn does.
    """
    parts = {part for part in label_map.parts(text) if part} if label_map.separator else {text}
    found = parts & set(label_map.texts)
    return set(label_map.value(reference) or ()), found, len(parts - found)


def _named_counts(rows: CountedRows, label_map: LabelMap) -> LabelCounts:
    counts = LabelCounts()
    for reference, text, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        wanted, found, strangers = _named(reference, text, label_map)
        counts.add(wanted, found, count)
        counts.strangers += count * strangers
    return counts


def _row_f1(rows: CountedRows, label_map: LabelMap) -> Sequence[float]:
    """F1 of the labels of each row, 0 without any on both sides; undefined where the map has a single label."""
    if len(label_map.texts) == 1:
        return [math.nan] * len(rows.counts)
    pairs = zip(rows.references, rows.predictions, strict=True)
    named = (_named(reference, text, label_map) for reference, text in pairs)
    return [f1(len(wanted & found), len(wanted), len(found)) for wanted, found, _ in named]


def _row_equal(rows: CountedRows, label_map: LabelMap) -> Sequence[float]:
    """1 for each row with exactly the labels of its reference."""
    pairs = zip(rows.references, rows.predictions, strict=True)
    named = (_named(reference, text, label_map) for reference, text in pairs)
    return [wanted == found for wanted, found, _ in named]


LabelCounter = Callable[[CountedRows, LabelMap], LabelCounts]
RowFigures = Callable[[CountedRows, LabelMap], Sequence[float]]


def _of_counts(counts_of: LabelCounter, value: Callable[[LabelCounts], float]) -> Callable[[LabelTables], Figure]:
    def compute(tables: LabelTables) -> Figure:
        counts = counts_of(tables.rows, tables.label_map)
        if counts.undefined:
            return Figure(math.nan, f"no label has the id or text {NO_RELATION!r}")
        return Figure(value(counts), _left_out(counts))

    return compute


def _of_rows(by_row: RowFigures) -> Callable[[LabelTables], Figure]:
    def compute(tables: LabelTables) -> Figure:
        rows, label_map = tables.rows, tables.label_map
        total = sum(figure * count for figure, count in zip(by_row(rows, label_map), rows.counts, strict=True))
        return Figure(total / sum(rows.counts), _left_out(_named_counts(rows, label_map)))

    return compute


def _left_out(counts: LabelCounts) -> str:
    return f"raw; {counts.strangers:,} named that are no label, left out" if counts.strangers else ""


def _counted(
    name: str, description: str, counts_of: LabelCounter, value: Callable[[LabelCounts], float], scale: str
) -> Metric:
    compute = _of_counts(counts_of, value)
    return _of_raw(name, description, compute, scale=scale, counts=counts_of, of_counts=value)


def _averaged(name: str, description: str, by_row: RowFigures) -> Metric:
    return _of_raw(name, description, _of_rows(by_row), by_row=by_row)


def _of_raw(name: str, description: str, compute: Callable[[LabelTables], Figure], **more: Any) -> Metric:
    return Metric(name, LABELS, description, compute, note="raw, as generated", default=False, **more)


register(
    Metric(
        "accuracy",
        LABELS,
        "share of outputs equal to their reference",
        _accuracy,
        note="raw, as generated",
        same_as="exact_match",
        by_row=_is_right,
    ),
    Metric(
        "accuracy_corrected",
        LABELS,
        "the same after label correction",
        _accuracy_corrected,
        corrected=True,
        by_row=_is_right_corrected,
    ),
    Metric(
        "macro_f1",
        LABELS,
        "mean F1 of the labels that occur, after correction",
        _macro_f1,
        counts=_corrected_counts,
        of_counts=LabelCounts.macro_f1,
    ),
    Metric(
        "micro_f1",
        LABELS,
        "F1 over all decisions, after correction",
        _micro_f1,
        counts=_corrected_counts,
        of_counts=LabelCounts.micro_f1,
    ),
    _counted(
        "klue_macro_f1",
        "macro F1, other outputs being a class more (KLUE-TC)",
        _klue_counts,
        lambda counts: 100 * counts.macro_f1(),
        POINTS,
    ),
    _counted(
        "klue_re_f1",
        "micro F1 without no_relation (KLUE-RE)",
        _relation_counts,
        lambda counts: 100 * counts.micro_f1(),
        POINTS,
    ),
    _averaged("samples_f1", "mean over the rows of F1 of their labels", _row_f1),
    _averaged("subset_accuracy", "share of rows with exactly the labels of the reference", _row_equal),
    _counted(
        "weighted_f1", "mean F1 of the labels, weighted by their rows", _named_counts, LabelCounts.weighted_f1, FRACTION
    ),
)
