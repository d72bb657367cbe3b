"""F1 of classes from counts of decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def f1(right: int, expected: int, given: int) -> float:
    """From decisions that are right, that the references hold, and that the predictions hold; 0 without any."""
    return 2 * right / (expected + given) if expected + given else 0.0


def f1_by_class(decisions: Mapping[tuple[Any, Any], int]) -> dict[Any, float]:
    """F1 of every class on either side, from counts of (class of the reference, class of the prediction)."""
    expected: Counter[Any] = Counter()
    given: Counter[Any] = Counter()
    for (reference, prediction), count in decisions.items():
        expected[reference] += count
        given[prediction] += count
    return {
        name: f1(decisions.get((name, name), 0), expected[name], given[name]) for name in expected.keys() | given.keys()
    }


def mean(values: Iterable[float]) -> float:
    """Of at least one value, added up exactly so that their order does not matter."""
    from math import fsum

    listed = list(values)
    return fsum(listed) / len(listed)
