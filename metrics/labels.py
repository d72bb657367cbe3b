"""Metrics of labels and the tables behind them: per class, averages, which label was taken for which."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics.f1 import f1, f1_by_class, mean
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
    from sklearn.metrics import precision_recall_fscore_support

    labels = label_map.texts
    strangers = {text for text in set(rows.references) if label_map.value(text) is None}
    if strangers:
        raise ValueError(f"reference {min(strangers)!r} is no label text; known: {label_map.describe()}")
    number = {label: index for index, label in enumerate(labels)}

    def decisions(texts: Sequence[str | None]) -> Any:
        """(rows, labels + 1), 1 where the text names the label; a last column of zeros, as one alone is refused."""
        named = [label_map.value(text or "") or () for text in texts]
        columns = [number[label] for found in named for label in found]
        starts = np.cumsum([0, *map(len, named)])
        return csr_matrix((np.ones(len(columns), np.int8), columns, starts), shape=(len(texts), len(labels) + 1))

    true, guess, counts = decisions(rows.references), decisions(rows.corrected), np.array(rows.counts)
    weights: dict[str, Any] = {"sample_weight": counts, "zero_division": 0}
    columns = precision_recall_fscore_support(true, guess, labels=np.arange(len(labels)), average=None, **weights)
    occurring = np.union1d(true.indices, guess.indices)
    seen = set(occurring.tolist())
    named_rows = int((np.diff(true.indptr) * counts).sum())
    return LabelTables(
        rows,
        label_map,
        per_class=[
            _class_row(labels[index], [column[index] if index in seen else None for column in columns[:3]], support)
            for index, support in enumerate(columns[3])
        ],
        averages=[
            _class_row(
                name,
                precision_recall_fscore_support(true, guess, labels=occurring, average=name, **weights)[:3],
                named_rows,
            )
            for name in ("macro", "micro")
        ],
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


def _klue_macro_f1(tables: LabelTables) -> Figure:
    """Macro F1 of the raw outputs: those that are no label make one class more, which no reference has."""
    rows = tables.rows
    decisions: Counter[tuple[str, str]] = Counter()
    for reference, prediction, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        decisions[reference, INVALID if tables.label_map.value(prediction) is None else prediction] += count
    return Figure(100 * mean(f1_by_class(decisions).values()))


def _klue_re_f1(tables: LabelTables) -> Figure:
    """Micro F1 of the raw outputs over all labels but `no_relation`, the id or text of one of them."""
    rows, none = tables.rows, tables.label_map.lookup(NO_RELATION)
    if none is None:
        return Figure(math.nan, f"no label has the id or text {NO_RELATION!r}")
    relations = set(tables.label_map.texts) - {none}
    right = wanted = found = 0
    for reference, prediction, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        right += count * (reference == prediction and reference in relations)
        wanted += count * (reference in relations)
        found += count * (prediction in relations)
    return Figure(100 * f1(right, wanted, found))


def _samples_f1(tables: LabelTables) -> Figure:
    """Mean over the rows of F1 of the labels that an output names; a row without labels on both sides counts 0."""
    if len(tables.label_map.texts) == 1:
        return Figure(math.nan, "there is a single label")
    named, detail = _named(tables)
    total = sum(count * f1(len(wanted & found), len(wanted), len(found)) for wanted, found, count in named)
    return Figure(total / sum(tables.rows.counts), detail)


def _subset_accuracy(tables: LabelTables) -> Figure:
    """Share of the rows that name exactly the labels of their reference."""
    named, detail = _named(tables)
    right = sum(count for wanted, found, count in named if wanted == found)
    return Figure(right / sum(tables.rows.counts), detail)


def _weighted_f1(tables: LabelTables) -> Figure:
    """Mean F1 of the labels, weighted by the rows whose reference has them; 0 where no reference has any."""
    named, detail = _named(tables)
    right: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for wanted, found, count in named:
        for total, labels in ((right, wanted & found), (expected, wanted), (given, found)):
            total.update(dict.fromkeys(labels, count))
    figure = sum(support * f1(right[label], support, given[label]) for label, support in expected.items())
    return Figure(figure / (expected.total() or 1), detail)


def _named(tables: LabelTables) -> tuple[list[tuple[set[str], set[str], int]], str]:
    """The labels of reference and raw output of every row, and what to say of the parts of outputs that are none.

    Order, blanks and repetition do not count, and parts that are no label are left out, as scikit-learn does.
    """
    rows, label_map = tables.rows, tables.label_map
    named = []
    strangers = 0
    for reference, prediction, count in zip(rows.references, rows.predictions, rows.counts, strict=True):
        parts = {part for part in label_map.parts(prediction) if part} if label_map.separator else {prediction}
        known = parts & set(label_map.texts)
        strangers += count * len(parts - known)
        named.append((set(label_map.value(reference) or ()), known, count))
    return named, f"raw; {strangers:,} named that are no label, left out" if strangers else "raw, as generated"


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
    Metric("macro_f1", LABELS, "mean F1 of the labels that occur, after correction", _macro_f1),
    Metric("micro_f1", LABELS, "F1 over all decisions, after correction", _micro_f1),
    *(
        Metric(name, LABELS, description, compute, scale=scale, note="raw, as generated", default=False)
        for name, description, compute, scale in (
            ("klue_macro_f1", "macro F1, other outputs being a class more (KLUE-TC)", _klue_macro_f1, POINTS),
            ("klue_re_f1", "micro F1 without no_relation (KLUE-RE)", _klue_re_f1, POINTS),
            ("samples_f1", "mean over the rows of F1 of their labels", _samples_f1, FRACTION),
            ("subset_accuracy", "share of rows with exactly the labels of the reference", _subset_accuracy, FRACTION),
            ("weighted_f1", "mean F1 of the labels, weighted by their rows", _weighted_f1, FRACTION),
        )
    ),
)
