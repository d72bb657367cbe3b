"""Class probabilities and what judges them, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metrics.uncertainty.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    LabelCalibration,
    ProbabilityScores,
    fit_temperature,
    fit_threshold,
    log_mean_probability,
    softmax,
)


def logs(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows))


def test_probabilities_are_the_labels_share_of_the_likelihood() -> None:
    """Labels of 0.3 and 0.1 share the rest of the probability in proportion; the sum of all texts is not needed."""
    assert LabelCalibration().probabilities(logs([0.3, 0.1])).tolist() == [pytest.approx([0.75, 0.25])]


def test_a_prior_divides_and_a_temperature_is_a_root() -> None:
    log_probs = logs([0.6, 0.4])
    prior = tuple(np.log([0.75, 0.25]).tolist())
    # 0.6 / 0.75 = 0.8 and 0.4 / 0.25 = 1.6: the other label wins, with two thirds
    corrected = LabelCalibration(prior)
    assert corrected.scores(log_probs).argmax() == 1
    assert corrected.probabilities(log_probs)[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    # the odds of 1 to 2 at temperature 1/2 are 1 to 4
    assert LabelCalibration(prior, 0.5).probabilities(log_probs)[0].tolist() == pytest.approx([0.2, 0.8])


def test_very_unlikely_labels_neither_overflow_nor_vanish_together() -> None:
    assert softmax(np.array([[-1000.0, -1000.0], [-1e6, 0.0]])).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_the_prior_is_the_mean_of_normalised_rows() -> None:
    """Rows count alike, however likely their labels are altogether: (3/4 + 1/5) / 2 and (1/4 + 4/5) / 2."""
    prior = log_mean_probability(logs([0.3, 0.1], [1e-9, 4e-9]))
    assert np.exp(prior).tolist() == pytest.approx([0.475, 0.525])
    assert math.isfinite(min(log_mean_probability([[0.0, -5000.0]])))


def test_the_fitted_temperature_makes_confidence_the_accuracy() -> None:
    """Odds of e^4 to 1 in ten rows, of which eight are right: the best fit says 0.8, odds of 4, at T = 4 / ln 4."""
    scores = np.tile([4.0, 0.0], (10, 1))
    targets = [0] * 8 + [1] * 2
    temperature = fit_temperature(scores, targets)
    assert temperature == pytest.approx(4 / math.log(4), rel=1e-12)
    assert softmax(scores / temperature)[0, 0] == pytest.approx(0.8)


def test_the_fitted_temperature_is_the_smallest_of_a_fine_grid() -> None:
    draw = np.random.Generator(np.random.PCG64(3))
    scores = 3 * draw.standard_normal((200, 5))
    targets = (scores + 4 * draw.standard_normal((200, 5))).argmax(1)
    fitted = fit_temperature(scores, targets)

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(scores / temperature)[np.arange(200), targets]).mean())

    assert 1.0 < fitted < 10.0
    assert all(loss(fitted) <= loss(fitted * factor) for factor in (0.9, 0.999, 1.001, 1.1))
    assert fit_temperature(scores + 7.0, targets) == pytest.approx(fitted)  # a constant says nothing


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([[2.0, 0.0], [1.0, 3.0]], [0, 1], LOWEST_TEMPERATURE),  # all right: the sharper the better
        ([[2.0, 0.0], [0.0, 2.0]], [1, 0], HIGHEST_TEMPERATURE),  # all wrong: the flatter the better
        ([[-3.0, -3.0]], [0], 1.0),
    ],
)
def test_a_temperature_beyond_the_range_is_its_end(
    scores: list[list[float]], targets: list[int], expected: float
) -> None:
    assert fit_temperature(scores, targets) == expected


def test_no_row_has_no_temperature() -> None:
    with pytest.raises(ValueError, match="no row"):
        fit_temperature(np.empty((0, 2)), [])


def test_figures_of_four_rows_by_hand() -> None:
    """Confidences 0.9 right, 0.9 wrong, 0.6 right, 0.7 right: bins 14 (0.8667-0.9333), 9 (0.5333-0.6) and 11."""
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]
    scores = ProbabilityScores()
    scores.add(probabilities[:1], [0])
    scores.add(probabilities[1:], [1, 1, 0])
    found = scores.metrics()
    # |1 - 1.8| of the first bin, |1 - 0.6| and |1 - 0.7|, over 4 rows
    assert found["expected_calibration_error"] == pytest.approx((0.8 + 0.4 + 0.3) / 4)
    # both labels count: 2 * 0.1^2, 2 * 0.9^2, 2 * 0.4^2, 2 * 0.3^2
    assert found["brier_score"] == pytest.approx((0.02 + 1.62 + 0.32 + 0.18) / 4)
    assert found["negative_log_likelihood"] == pytest.approx(-math.log(0.9 * 0.1 * 0.6 * 0.7) / 4)


def test_bins_are_closed_above() -> None:
    """0.2 is the end of the first of five bins, and 1.0 of the last."""
    scores = ProbabilityScores(bins=5)
    third = [0.2] * 5
    scores.add([third, [1.0, 0.0, 0.0, 0.0, 0.0]], [0, 1])
    assert scores._confidence.tolist() == [0.2, 0.0, 0.0, 0.0, 1.0]
    assert scores.metrics()["expected_calibration_error"] == pytest.approx((0.8 + 1.0) / 2)


def test_impossible_references_stay_finite_and_no_row_has_no_figures() -> None:
    scores = ProbabilityScores()
    assert scores.metrics() == {}
    scores.add(np.empty((0, 2)), [])
    assert scores.metrics() == {}
    scores.add([[1.0, 0.0]], [1])
    assert scores.metrics() == {
        "expected_calibration_error": 1.0,
        "brier_score": 2.0,
        "negative_log_likelihood": pytest.approx(708.4, abs=0.1),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_threshold_has_the_largest_f1_that_there_is(seed: int) -> None:
    """As scikit-learn computes it at every probability that a row has; values repeat."""
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(seed)
    shares, truth = draw.integers(0, 12, 40) / 10, draw.random(40) < 0.4
    found = fit_threshold(shares, truth)
    assert found is not None
    assert found not in shares
    best = max(f1_score(truth, shares >= share) for share in set(shares) - {0})
    assert f1_score(truth, shares >= found) == best


def test_a_threshold_needs_a_row_that_has_the_label_and_a_probability_in_it() -> None:
    assert fit_threshold([0.9, 0.2], [False, False]) is None
    assert fit_threshold([0.9, 0.0], [False, True]) is None
    assert fit_threshold([0.9, 0.5, 0.1], [True, False, False]) == pytest.approx(0.7)
    assert fit_threshold([0.4], [True]) == pytest.approx(0.2)


def test_the_bins_of_a_calibration_diagram() -> None:
    scores = ProbabilityScores()
    scores.add([[0.9, 0.1], [0.92, 0.08], [0.4, 0.6]], [0, 1, 1])
    scores.add([[0.3, 0.7]], [0])
    low, high, highest = scores.reliability()
    assert low == (pytest.approx(0.6), 1.0, 1)
    assert high == (pytest.approx(0.7), 0.0, 1)
    assert highest == (pytest.approx(0.91), 0.5, 2)
