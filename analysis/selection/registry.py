"""The strategies by name: what each looks at, and which rows it would take.

A strategy is one `Strategy`, registered in a file of this folder; `strategies.py` names the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import NamedTuple

import numpy as np

from postprocessors.labels import LabelMap

# What a strategy looks at, besides the texts of the rows.
TOKENS = "tokens"  # nothing is predicted
ONE_LABEL = "probabilities of one label"
SEVERAL_LABELS = "probabilities of several labels"
VECTORS = "vectors of the encoder"


@dataclass(frozen=True)
class Rows:
    """The rows to choose from, each read when it is asked for."""

    count: int
    source_ids: Callable[[int], np.ndarray]
    reference: Callable[[int], str | None]
    probabilities: Callable[[int], Sequence[float]] = lambda _: ()  # one a label, in the order of the label map
    labels: LabelMap | None = None
    thresholds: tuple[float, ...] = ()  # of the labels, where a row may have several
    piece: Callable[[int], str] = str  # the text of a token
    unknown_id: int | None = None
    trained: Callable[[], Iterable[np.ndarray]] = tuple  # token ids of the training rows
    vectors: np.ndarray | None = None  # (rows, width), memory-mapped
    seed: int = 0

    @property
    def texts(self) -> Sequence[str]:
        """Those of the labels."""
        return self.labels.texts if self.labels else ()

    def all_probabilities(self) -> Iterator[tuple[int, Sequence[float]]]:
        """Every row with its probabilities."""
        return ((row, self.probabilities(row)) for row in range(self.count))


class Candidate(NamedTuple):
    """A row, why it ought to be looked at, and how urgently: the higher the score, the sooner."""

    row: int
    score: float
    reason: str


@dataclass(frozen=True)
class Strategy:
    """A way to choose rows; `candidates` are given the rows and how many are wanted, and come in any order."""

    name: str
    takes: str
    candidates: Callable[[Rows, int], Iterable[Candidate]]
    needs_references: bool = False


STRATEGIES: dict[str, Strategy] = {}


def register(*strategies: Strategy) -> None:
    """Make strategies known."""
    STRATEGIES.update({strategy.name: strategy for strategy in strategies})


def best(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The `count` candidates of the highest scores, best first, of equal ones the earlier row; only so many are kept
    in memory."""
    return nsmallest(count, candidates, key=_urgency)


def best_of_groups(candidates: Iterable[Candidate], groups: Sequence[int], count: int) -> list[Candidate]:
    """The best of each group, as many as its share of all rows; `groups` holds the number of each row's group.

    Shares are rounded by the largest remainders, of equal ones the earlier group, so that they sum to `count`.
    """
    quotas = shares_of(Counter(groups), count)
    kept: dict[int, list[Candidate]] = {group: [] for group in quotas}
    for candidate in candidates:
        group = groups[candidate.row]
        kept[group].append(candidate)
        if len(kept[group]) >= 2 * quotas[group] + 100:
            kept[group] = best(kept[group], quotas[group])
    return sorted((one for group, those in kept.items() for one in best(those, quotas[group])), key=_urgency)


def shares_of(rows: Counter[int], count: int) -> dict[int, int]:
    """`count` divided in proportion to rows, by the largest remainders; none gets more than it has."""
    total = rows.total()
    count = min(count, total)
    quotas = {group: count * number // total for group, number in sorted(rows.items())}
    rest = sorted(quotas, key=lambda group: (-(count * rows[group] % total), group))
    for group in rest[: count - sum(quotas.values())]:
        quotas[group] += 1
    return quotas


def _urgency(candidate: Candidate) -> tuple[float, int]:
    return -candidate.score, candidate.row
