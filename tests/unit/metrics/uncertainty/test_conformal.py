"""Sets of labels and abstention: rules worked out by hand, and their promise kept over many draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from metrics.uncertainty.conformal import (
    AnswerRule,
    SetRule,
    Silence,
    highest_rate,
    rows_for_answers,
    rows_for_sets,
    silence_scores,
)


def of_two(*right: float) -> tuple[np.ndarray, list[int]]:
    """Probabilities of two labels whose right one, the first, has these."""
    return np.array([[share, 1 - share] for share in right]), [0] * len(right)


def test_the_threshold_is_the_rank_of_the_paper() -> None:
    """Nine rows and level 0.8: ceil(10 * 0.8) = the eighth smallest 1 - p, the second smallest p."""
    shares, targets = of_two(0.9, 0.3, 0.8, 0.2, 0.95, 0.7, 0.6, 0.85, 0.75)
    rule = SetRule.fit(shares, targets, 0.8)
    assert rule == SetRule(0.8, 9, 0.3)
    rows = ([0.3, 0.7], [0.2, 0.8], [0.29, 0.25, 0.46], [0.29] * 2)
    assert [rule.labels(row) for row in rows] == [[0, 1], [1], [2], []]
    assert SetRule.fit(shares, targets, 0.9).least == 0.2


@pytest.mark.parametrize(("level", "rows"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.7, 3), (0.9999, 9999)])
def test_as_few_rows_as_the_level_allows(level: float, rows: int) -> None:
    assert rows_for_sets(level) == rows
    draw = np.random.default_rng(0).random(rows)
    assert SetRule.fit(*of_two(*draw), level).least == draw.min()
    with pytest.raises(ValueError, match=f"{rows - 1:,} rows, and level {level} needs {rows:,}"):
        SetRule.fit(*of_two(*draw[1:]), level)


def test_the_bound_is_the_exact_binomial_one() -> None:
    exact = binomtest(7, 200).proportion_ci(1 - 2 * 0.05 / 20, "exact").high
    assert highest_rate(7, 200) == pytest.approx(exact)
    assert highest_rate(3, 3) == highest_rate(0, 0) == 1.0
    assert highest_rate(0, rows_for_answers(0.05)) <= 0.05 < highest_rate(0, rows_for_answers(0.05) - 1)


def test_the_largest_part_with_few_enough_errors_is_answered() -> None:
    """The surest 700 of 1,000 rows are right, the rest is wrong every second time: 25 errors of 750 have a bound above
    0.05 (0.0561), none of 700 one far below."""
    sure = np.linspace(1.0, 0.5, 1000, endpoint=False)
    targets = [0] * 700 + [0, 1] * 150
    rule = AnswerRule.fit(np.stack([sure, 1 - sure], 1), targets, 0.05)
    assert rule == AnswerRule(0.05, 1000, sure[700])
    assert [rule.answers([sure[row], 1 - sure[row]]) for row in (0, 699, 999)] == [True, True, False]
    assert AnswerRule.fit(np.stack([sure, 1 - sure], 1), targets, 0.3).above == 0.0  # all rows
    with pytest.raises(ValueError, match=r"no part of these 1,000 labelled rows shows so few errors; .* is 0.0086: "):
        AnswerRule.fit(np.stack([sure, 1 - sure], 1), targets, 0.005)


def test_rows_that_are_equally_sure_are_answered_together() -> None:
    shares = np.array([[1.0, 0.0]] * 600 + [[0.6, 0.4]] * 400)
    rule = AnswerRule.fit(shares, [0] * 600 + [1] * 400, 0.05)
    assert rule.above == 0.6


def test_the_promises_hold_over_many_draws() -> None:
    """Of 400 draws the mean coverage is the level, and more errors than the rate are rare (at most 5 % of them)."""
    draw = np.random.default_rng(5)
    covered, broken = [], 0
    for _ in range(400):
        sure = 1 - draw.random(600) ** 4 / 2  # a tenth of all is wrong
        targets = (draw.random(600) > sure).astype(int)
        shares = np.stack([sure, 1 - sure], 1)
        sets = SetRule.fit(shares[:100], targets[:100].tolist(), 0.9)
        answers = AnswerRule.fit(shares[:400], targets[:400], 0.07)
        covered.append(np.mean(shares[range(100, 600), targets[100:]] >= sets.least))
        truly = 1 - sure[sure > answers.above]  # the expected errors of what is answered
        broken += truly.mean() > 0.07
    assert np.mean(covered) == pytest.approx(91 / 101, abs=0.01)
    assert broken <= 20


def test_figures_by_hand() -> None:
    silence = Silence(SetRule(0.8, 9, 0.3), AnswerRule(0.1, 500, 0.6))
    references = ["a", "b", None, "b"]
    shares = [(0.9, 0.1), (0.65, 0.35), (0.6, 0.4), (0.8, 0.2)]
    scores = silence_scores(silence, ("a", "b"), references, shares)
    found = scores.to_dict()
    assert found["label_sets"] == {
        "level": 0.8,
        "calibration_rows": 9,
        "least_probability": 0.3,
        "coverage": 2 / 3,
        "mean_size": 1.5,
        "sizes": {"1": 2, "2": 2},
    }
    assert found["abstain"] == {
        "rate": 0.1,
        "confidence": 0.95,
        "calibration_rows": 500,
        "above_probability": 0.6,
        "answered": 3,
        "answered_share": 0.75,
        "error_rate": 2 / 3,
    }
    assert scores.lines() == [
        "label sets of level 0.8: coverage 0.6667 of 3 rows with a reference, mean size 1.5000",
        "  rows by the size of their set: 1 label 2, 2 labels 2",
        "answered: 3 of 4 rows (0.7500); wrong among those with a reference: 0.6667, asked for at most 0.1",
    ]
    assert silence_scores(silence, ("a", "b"), [None], [(0.5, 0.5)]).to_dict()["abstain"]["error_rate"] is None
