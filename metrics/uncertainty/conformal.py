"""Answers that know when to be silent: sets of labels that hold the right one, and rows that are left unanswered.

Both rules are fitted on label probabilities of labelled rows that were drawn like the rows to come and fitted nothing
else. Shapes: (rows, labels) of probabilities, (rows,) of targets, which are label numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from utils.tables import counted

CONFIDENCE = 0.95  # with which the errors of the answered rows stay below their rate
SHARES = 20  # of the rows, the surest ones, that are looked at: 5 %, 10 %, ... 100 %

Shares = Sequence[float]  # the probability of each label, of one row


@dataclass(frozen=True)
class SetRule:
    """A row's set holds the labels of probability `least` or more: the right one is in it with probability `level`.

    Split conformal prediction with the score 1 - p(right label), which has the smallest sets on average (Sadinle, Lei
    and Wasserman 2019; Angelopoulos and Bates 2023, section 1). The probability is over the draw of the `rows` fitted
    on and of the row to come.
    """

    level: float
    rows: int
    least: float

    @classmethod
    def fit(cls, probabilities: Any, targets: Sequence[int], level: float) -> SetRule:
        """The rule whose score is the ceil((n + 1) level)-th smallest of n rows.

        Raises:
            ValueError: fewer rows than `rows_for_sets`.
        """
        if len(targets) < rows_for_sets(level):
            raise ValueError(f"{counted(len(targets), 'row')}, and level {level:g} needs {rows_for_sets(level):,}")
        right = np.sort(np.asarray(probabilities, dtype=np.float64)[np.arange(len(targets)), targets])
        rank = math.ceil((len(right) + 1) * Fraction(str(level)))
        return cls(level, len(right), float(right[len(right) - rank]))

    def labels(self, shares: Shares) -> list[int]:
        """The numbers of the labels of a row's set, which may be empty."""
        return [label for label, share in enumerate(shares) if share >= self.least]


def rows_for_sets(level: float) -> int:
    """The fewest labelled rows on which sets of this level can be fitted."""
    return math.ceil(1 / (1 - Fraction(str(level)))) - 1


@dataclass(frozen=True)
class AnswerRule:
    """A row is answered where its likeliest label is more probable than `above`: at most `rate` of these are wrong.

    That holds with a probability of `CONFIDENCE` over the draw of the `rows` fitted on: selection with guaranteed risk
    (Geifman and El-Yaniv 2017, section 3). The surest 5 %, 10 %, ... 100 % of the rows are looked at, and the largest
    part is taken whose errors have an exact binomial bound (Clopper and Pearson 1934) of `rate` or less, each at
    (1 - `CONFIDENCE`) / 20, so that all 20 hold together.
    """

    rate: float
    rows: int
    above: float

    @classmethod
    def fit(cls, probabilities: Any, targets: Sequence[int], rate: float) -> AnswerRule:
        """The rule that answers most rows.

        Raises:
            ValueError: no part of the rows has so few errors; with the smallest bound that a part has.
        """
        values = np.asarray(probabilities, dtype=np.float64)
        sure = values.max(axis=1)
        wrong = values.argmax(axis=1) != np.asarray(targets)
        ordered = np.sort(sure)[::-1]
        found, lowest = None, 1.0
        for share in range(1, SHARES + 1):
            first_left_out = -(-len(sure) * share // SHARES)
            above = float(ordered[first_left_out]) if first_left_out < len(sure) else 0.0
            answered = sure > above
            bound = highest_rate(int(wrong[answered].sum()), int(answered.sum()))
            lowest = min(lowest, bound)
            found = above if bound <= rate else found
        if found is None:
            raise ValueError(
                f"no part of these {len(sure):,} labelled rows shows so few errors; the smallest rate that they can"
                f" show is {math.ceil(1e4 * lowest) / 1e4:g}: give that or more, more rows, or a better model"
            )
        return cls(rate, len(sure), found)

    def answers(self, shares: Shares) -> bool:
        return max(shares) > self.above


def highest_rate(wrong: int, rows: int) -> float:
    """The upper end of the exact binomial interval of a share of errors, at the level of one of `SHARES` parts."""
    from scipy.special import betaincinv

    if wrong == rows:
        return 1.0
    return float(betaincinv(wrong + 1, rows - wrong, 1 - (1 - CONFIDENCE) / SHARES))


def rows_for_answers(rate: float) -> int:
    """The fewest labelled rows on which a rule of this rate can be fitted: that many without an error."""
    rows = math.ceil(math.log((1 - CONFIDENCE) / SHARES) / math.log1p(-rate))
    return rows + (highest_rate(0, rows) > rate)


@dataclass(frozen=True)
class Silence:
    """The rules that were asked for."""

    sets: SetRule | None = None
    answers: AnswerRule | None = None

    def abstains(self, shares: Shares | None) -> bool:
        """Whether a row with these probabilities is left unanswered."""
        return self.answers is not None and shares is not None and not self.answers.answers(shares)


NO_SILENCE = Silence()


@dataclass
class AnswerScores:
    """How many rows are answered, and how many answers are wrong, of rows added one by one."""

    rows: int = 0
    answered: int = 0
    scored: int = 0  # answers whose row has a reference
    wrong: int = 0

    @classmethod
    def of(cls, answered: Iterable[bool], texts: Iterable[str], references: Iterable[str | None]) -> AnswerScores:
        """The scores of predictions, each right if it equals its reference."""
        scores = cls()
        for is_answered, text, reference in zip(answered, texts, references, strict=True):
            scores.add(is_answered, None if reference is None else text == reference)
        return scores

    def add(self, is_answered: bool, is_right: bool | None) -> None:
        """Take in a row; `is_right` is None where it has no reference."""
        self.rows += 1
        self.answered += is_answered
        self.scored += is_answered and is_right is not None
        self.wrong += is_answered and is_right is False

    def to_dict(self) -> dict[str, Any]:
        """The figures of `abstain` in a report; None for a share of no row."""
        return {
            "answered": self.answered,
            "answered_share": _share(self.answered, self.rows),
            "error_rate": _share(self.wrong, self.scored),
        }

    def line(self) -> str:
        """The same to print."""
        found = self.to_dict()
        return (
            f"answered: {self.answered:,} of {counted(self.rows, 'row')} ({_text(found['answered_share'])});"
            f" wrong among those with a reference: {_text(found['error_rate'])}"
        )


@dataclass
class SilenceScores:
    """What the rules came to on rows, added one by one: how often sets hold the reference, how often answers do."""

    sets: SetRule | None
    answers: AnswerRule | None
    rows: int = 0
    scored: int = 0
    covered: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    answer_scores: AnswerScores = field(default_factory=AnswerScores)

    def add(self, shares: Shares, target: int | None) -> None:
        """Take in a row; `target` is the number of its right label, None where it has no reference."""
        self.rows += 1
        self.scored += target is not None
        if self.sets:
            found = self.sets.labels(shares)
            self.sizes[len(found)] += 1
            self.covered += target in found
        if self.answers:
            likeliest = max(range(len(shares)), key=shares.__getitem__)
            self.answer_scores.add(self.answers.answers(shares), None if target is None else target == likeliest)

    def to_dict(self) -> dict[str, Any]:
        """`label_sets` and `abstain` of a report: those that were asked for; None for a share of no row."""
        found: dict[str, Any] = {}
        if self.sets:
            found["label_sets"] = {
                "level": self.sets.level,
                "calibration_rows": self.sets.rows,
                "least_probability": self.sets.least,
                "coverage": _share(self.covered, self.scored),
                "mean_size": _share(self.sizes.total() and sum(size * n for size, n in self.sizes.items()), self.rows),
                "sizes": {str(size): self.sizes[size] for size in sorted(self.sizes)},
            }
        if self.answers:
            found["abstain"] = {
                "rate": self.answers.rate,
                "confidence": CONFIDENCE,
                "calibration_rows": self.answers.rows,
                "above_probability": self.answers.above,
                **self.answer_scores.to_dict(),
            }
        return found

    def lines(self) -> list[str]:
        """The same to print."""
        found, lines = self.to_dict(), []
        if sets := found.get("label_sets"):
            sizes = ", ".join(f"{counted(int(size), 'label')} {rows:,}" for size, rows in sets["sizes"].items())
            lines += [
                f"label sets of level {sets['level']:g}: coverage {_text(sets['coverage'])} of"
                f" {counted(self.scored, 'row')} with a reference, mean size {_text(sets['mean_size'])}",
                f"  rows by the size of their set: {sizes}",
            ]
        if answers := found.get("abstain"):
            lines.append(f"{self.answer_scores.line()}, asked for at most {answers['rate']:g}")
        return lines


def silence_scores(
    silence: Silence,
    texts: Sequence[str],
    references: Iterable[str | None],
    probabilities: Iterable[Shares | None],
) -> SilenceScores:
    """What the rules come to on all rows; `texts` are those of the labels, in the order of the probabilities."""
    number = {text: label for label, text in enumerate(texts)}
    scores = SilenceScores(silence.sets, silence.answers)
    for reference, shares in zip(references, probabilities, strict=True):
        scores.add(shares or (), None if reference is None else number[reference])
    return scores


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _text(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.4f}"
