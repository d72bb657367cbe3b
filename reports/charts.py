"""What the charts of a report show, as plain numbers: `svg` draws them on the page, `images` as PNGs.

A chart has a `name`, that of its PNG, and a `title`. Numbers that are none (NaN, None) are left out before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MOST_POINTS = 300  # of a line
MOST_BARS = 24  # of a histogram
COMMON = 0.99  # share of the lengths that a histogram shows whole; longer ones share its last bar
LOG_FROM = 20.0  # times that the highest value is the lowest, from which the axis is logarithmic


@dataclass(frozen=True)
class Line:
    """A named line over points (x, y) in order of x; with `dots` each of them is marked, not `joined` that alone."""

    label: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Curves:
    """Lines over one axis, e.g. losses over optimizer steps."""

    name: str
    title: str
    x: str
    lines: tuple[Line, ...]
    linear: bool = False  # in y, whatever the values
    from_zero: bool = True  # in x; else from the lowest value
    words: tuple[str, ...] = ()  # what stands at 0, 1, ... of x in place of numbers

    @property
    def logarithmic(self) -> bool:
        """Whether y has a logarithmic axis: positive values over more than a power of ten."""
        return not self.linear and _spread([y for line in self.lines for _, y in line.points])

    @property
    def logarithmic_x(self) -> bool:
        """Whether x has one."""
        return not self.from_zero and not self.words and _spread([x for line in self.lines for x, _ in line.points])


def _spread(values: list[float]) -> bool:
    return bool(values) and max(values) > LOG_FROM * min(values) > 0


@dataclass(frozen=True)
class Histogram:
    """How often lengths occur: bar `n` counts those above n * width and up to (n + 1) * width, so that what is cut lies
    in front of the `cut_off`."""

    name: str
    title: str
    x: str
    width: int
    counts: tuple[tuple[str, tuple[int, ...]], ...]  # by name, all of the same number of bars
    cut_off: int = 0  # the length at which texts are cut; 0 = none
    clipped: bool = False  # the last bar counts all longer ones as well

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Histogram:
        """Inverse of `dataclasses.asdict`, through JSON."""
        return cls(**{**state, "counts": tuple((label, tuple(counts)) for label, counts in state["counts"])})


@dataclass(frozen=True)
class Bars:
    """Precision, recall and F1 of classes: `values` has a number from 0 to 1, or None, for each of `columns`."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...], int], ...]  # label, values, support
    left_out: int = 0


@dataclass(frozen=True)
class Matrix:
    """Counts of references (rows) and what was predicted for them (columns)."""

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reliability:
    """Bins of rows by the probability of their prediction: (mean probability, share that is right, rows)."""

    name: str
    title: str
    bins: tuple[tuple[float, float, int], ...]


Chart = Curves | Histogram | Bars | Matrix | Reliability


def line(label: str, points: Iterable[tuple[Any, Any]], dots: bool = False) -> Line:
    """A line of at most `MOST_POINTS` points: of more, the lowest and the highest of each stretch stay."""
    known = [(float(x), float(y)) for x, y in points if _is_number(x) and _is_number(y)]
    if len(known) <= MOST_POINTS:
        return Line(label, tuple(known), dots)
    stretches = MOST_POINTS // 2
    bounds = [len(known) * number // stretches for number in range(stretches + 1)]
    kept = []
    for start, end in pairwise(bounds):
        stretch = range(start, end)
        low, high = (choose(stretch, key=lambda place: known[place][1]) for choose in (min, max))
        kept += [known[place] for place in sorted({low, high})]
    return Line(label, tuple(kept), dots)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def histogram(name: str, title: str, x: str, lengths: Mapping[str, Any], cut_off: int = 0) -> Histogram | None:
    """The histogram of named lengths, lists or arrays; None where there are none."""
    import numpy as np

    arrays = {label: np.asarray(values, dtype=np.int64) for label, values in lengths.items() if len(values)}
    if not arrays:
        return None
    longest = max(int(values.max()) for values in arrays.values())
    common = max(int(np.quantile(values, COMMON)) for values in arrays.values())
    shown = max(longest if longest <= 2 * common else common * 3 // 2, cut_off if cut_off <= 2 * longest else 0, 1)
    width = next(step for step in _steps() if step * MOST_BARS >= shown)
    bars = -(-shown // width)
    counts = tuple(
        (label, tuple(np.bincount(np.clip((values - 1) // width, 0, bars - 1), minlength=bars).tolist()))
        for label, values in arrays.items()
    )
    return Histogram(name, title, x, width, counts, cut_off, longest > bars * width)


def _steps() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
