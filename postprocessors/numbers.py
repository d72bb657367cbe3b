"""Outputs that are a number, such as the similarity of two sentences from 0 to 5."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import raise_if_any

MOST_CHOICES = 10_000
MOST, MOST_DECIMALS = 1e15, 15  # what a float tells apart
_FIRST_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Number:
    """A number as Python's `float` reads it: blanks around it and full-width digits count, `3,5` and `3.5점` do not.

    The model should write one from `lowest` to `highest` (None: no bound) with `decimals` digits behind the point. That
    bounds the length of an output; a number out of bounds still stands for itself.

    Raises `UserError` on bounds that are not finite, beyond `MOST` or the wrong way round, and on decimals below 0 or
    above `MOST_DECIMALS`.
    """

    lowest: float | None = None
    highest: float | None = None
    decimals: int = 1

    name = "number"
    kind = "numbers"
    correction = "first number of the text"
    texts = ()

    def __post_init__(self) -> None:
        bounds = {"lowest": self.lowest, "highest": self.highest}
        problems = [
            f"{name} {bound} is not finite" for name, bound in bounds.items() if not math.isfinite(bound or 0.0)
        ]
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            problems.append(f"lowest {self.lowest:g} is above highest {self.highest:g}")
        problems += [
            f"{name} {bound:g} is beyond {MOST:g}"
            for name, bound in bounds.items()
            if MOST < abs(bound or 0.0) < math.inf
        ]
        if not 0 <= self.decimals <= MOST_DECIMALS:
            problems.append(f"decimals {self.decimals} is not from 0 to {MOST_DECIMALS}")
        raise_if_any(problems)

    @property
    def choices(self) -> tuple[str, ...]:
        """Every number from `lowest` to `highest` with `decimals` digits, up to `MOST_CHOICES`; else none."""
        if self.lowest is None or self.highest is None:
            return ()
        unit = 10**self.decimals
        first, last = math.ceil(self.lowest * unit), math.floor(self.highest * unit)
        if last - first >= MOST_CHOICES:
            return ()
        return tuple(f"{number / unit:.{self.decimals}f}" for number in range(first, last + 1))

    @property
    def longest_texts(self) -> Sequence[str]:
        """The two bounds as the model should write them; empty unless both are there."""
        if self.lowest is None or self.highest is None:
            return ()
        return tuple(f"{bound:.{self.decimals}f}" for bound in (self.lowest, self.highest))

    def value(self, text: str) -> float | None:
        """The number, None where `float` reads none or one that is not finite."""
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def is_outside(self, number: float | None) -> bool:
        """Whether a number lies below `lowest` or above `highest`."""
        low = -math.inf if self.lowest is None else self.lowest
        high = math.inf if self.highest is None else self.highest
        return number is not None and not low <= number <= high

    def correct(self, predictions: Sequence[str], max_distance: int | None = None) -> list[str | None]:
        """Every prediction that is a number, of the others the first number in it; None where there is none, or more
        than `max_distance` other characters stand around it."""
        return [text if self.value(text) is not None else self._first(text, max_distance) for text in predictions]

    def _first(self, text: str, max_distance: int | None) -> str | None:
        found = _FIRST_NUMBER.search(text)
        number = found.group() if found else ""
        if self.value(number) is None or (max_distance is not None and len(text) - len(number) > max_distance):
            return None
        return number

    def reference_problem(self, reference: str) -> str:
        """It must be a number."""
        return "reference is no number" if self.value(reference) is None else ""

    def describe(self) -> str:
        """`numbers from 0 to 5`."""
        low = "" if self.lowest is None else f" from {self.lowest:g}"
        return f"numbers{low}" + ("" if self.highest is None else f" to {self.highest:g}")
