"""Metrics of dependency trees: shares of words, and the F1 of KLUE's dependency parsing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from metrics.f1 import f1_by_class, mean
from metrics.labels import CountedRows
from metrics.registry import POINTS, Figure, Metric, register
from postprocessors.dependencies import NO_ARC, Arc, Dependencies
from utils.errors import UserError
from utils.tables import counted

COMMON = 15  # relations that KLUE counts by themselves; all later ones are one class
NONE = -2  # the class of what is no head or no relation


@dataclass
class ArcCounts:
    """Words of all sentences, punctuation included, added up as KLUE-baseline does (`metrics/functional.py`).

    `labelled` has the relation classes of KLUE: a relation under a wrong head is one that no reference has.
    """

    relations: Sequence[str]
    words: int = 0
    missing: int = 0  # words without a head that can be read
    right_heads: int = 0
    right: int = 0  # head and relation
    heads: Counter[tuple[int, int]] = field(default_factory=Counter)
    labelled: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._class = {relation: min(place, COMMON) for place, relation in enumerate(self.relations)}

    def add(self, reference: Sequence[Arc], prediction: Sequence[Arc], count: int) -> None:
        """Take in a sentence that occurs `count` times; a prediction is cut, or filled up, to the words there are."""
        filled = [*prediction, *[NO_ARC] * len(reference)][: len(reference)]
        for (head, relation), (given, named) in zip(reference, filled, strict=True):
            same = given == head
            self.words += count
            self.missing += count * (given is None)
            self.right_heads += count * same
            self.right += count * (same and named == relation)
            self.heads[head or 0, NONE if given is None else given] += count
            self.labelled[
                self._class.get(relation or "", NONE), self._class.get(named or "", NONE) if same else NONE
            ] += count

    def share(self, right: int) -> float:
        """In points of 100."""
        return 100 * right / self.words if self.words else math.nan


def macro(decisions: Counter[tuple[int, int]]) -> float:
    """Mean F1, in points, of the classes on either side; NaN without any."""
    scores = f1_by_class(decisions).values()
    return 100 * mean(scores) if scores else math.nan


def micro(decisions: Counter[tuple[int, int]]) -> float:
    """Share of the decisions that are right, in points; NaN without any."""
    right = sum(count for (reference, prediction), count in decisions.items() if reference == prediction)
    return 100 * right / decisions.total() if decisions else math.nan


def _trees(rows: CountedRows, postprocessor: Dependencies) -> Iterator[tuple[Arc, ...]]:
    for reference in rows.references:
        arcs = postprocessor.tree(reference)
        if not arcs:
            raise UserError(
                f"reference {reference[:200]!r} is no dependency line, for example 'deprel: (1/2, 0, VP)'; heads are at"
                " most the number of words, and relations are those of the task"
            )
        yield arcs


@lru_cache(maxsize=1)
def counted_arcs(rows: CountedRows, postprocessor: Dependencies) -> tuple[ArcCounts, ArcCounts]:
    """Counts of the predictions as they stand, and after correction.

    Raises:
        UserError: a reference that is no dependency line.
    """
    raw, corrected = ArcCounts(postprocessor.relations), ArcCounts(postprocessor.relations)
    trees = _trees(rows, postprocessor)
    for tree, prediction, read, count in zip(trees, rows.predictions, rows.corrected, rows.counts, strict=True):
        raw.add(tree, postprocessor.arcs(prediction), count)
        corrected.add(tree, postprocessor.arcs(read or ""), count)
    return raw, corrected


def _raw(rows: CountedRows, postprocessor: Dependencies) -> ArcCounts:
    return counted_arcs(rows, postprocessor)[0]


def _corrected(rows: CountedRows, postprocessor: Dependencies) -> ArcCounts:
    return counted_arcs(rows, postprocessor)[1]


def _figure(
    counts: Callable[[CountedRows, Dependencies], ArcCounts], value: Callable[[ArcCounts], float], told: str
) -> Callable[[CountedRows, Dependencies], Figure]:
    def compute(rows: CountedRows, postprocessor: Dependencies) -> Figure:
        found = counts(rows, postprocessor)
        return Figure(value(found), told or f"{counted(found.missing, 'word')} of {found.words:,} without an arc")

    return compute


# Name, description, what is counted, the figure from it, the key of its detail, and the detail where it is no count.
_METRICS: tuple[tuple[str, str, Callable[..., ArcCounts], Callable[[ArcCounts], float], str, str], ...] = (
    ("uas", "share of words with the right head", _raw, lambda c: c.share(c.right_heads), "arcs", ""),
    ("las", "share of words with the right head and relation", _raw, lambda c: c.share(c.right), "arcs", ""),
    ("uas_corrected", "the first after correction", _corrected, lambda c: c.share(c.right_heads), "arcs corrected", ""),
    ("las_corrected", "the second after correction", _corrected, lambda c: c.share(c.right), "arcs corrected", ""),
    (
        "uas_macro_f1",
        "KLUE: mean F1 of the head positions",
        _raw,
        lambda c: macro(c.heads),
        "",
        "classes are head positions",
    ),
    (
        "las_macro_f1",
        "KLUE: mean F1 of the relations of words with the right head",
        _raw,
        lambda c: macro(c.labelled),
        "",
        f"the first {COMMON} relations, and the others",
    ),
    ("uas_macro_f1_corrected", "KLUE, after correction", _corrected, lambda c: macro(c.heads), "arcs corrected", ""),
    ("las_macro_f1_corrected", "KLUE, after correction", _corrected, lambda c: macro(c.labelled), "arcs corrected", ""),
    ("uas_micro_f1", "KLUE: F1 over all heads, the share of right ones", _raw, lambda c: micro(c.heads), "arcs", ""),
    ("las_micro_f1", "KLUE: F1 over all relations, rare ones as one", _raw, lambda c: micro(c.labelled), "arcs", ""),
)
register(
    *(
        Metric(
            name,
            Dependencies.kind,
            description,
            _figure(counts, value, told),
            scale=POINTS,
            how=how,
            corrected=counts is _corrected,
            counts=counts,
            of_counts=value,
        )
        for name, description, counts, value, how, told in _METRICS
    )
)
