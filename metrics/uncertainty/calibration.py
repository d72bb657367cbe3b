"""Class probabilities: corrected by a prior, sharpened or softened by a temperature, and judged. numpy only.

Shapes: (rows, labels) of log-probabilities or probabilities, (rows,) of targets, which are label numbers.
docs/metrics.md says what each figure means to a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15  # of the expected calibration error; Guo et al. 2017 use 15 as well
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
BISECTIONS = 60  # of a range of factor 10^4: the temperature is found to the last bits of float64
SMALLEST = float(np.finfo(np.float64).tiny)  # stands for a probability that float64 rounds to 0


@dataclass(frozen=True)
class LabelCalibration:
    """How log-probabilities of labels become class probabilities: softmax((log P(label | source) - prior) / T).

    `log_prior` holds a number for each label, or none for no correction; `temperature` is T.
    """

    log_prior: tuple[float, ...] = ()
    temperature: float = 1.0

    def scores(self, log_probs: Any) -> Floats:
        """(rows, labels) log-probabilities less the prior: the largest is the predicted label, whatever T."""
        scores = np.asarray(log_probs, dtype=np.float64)
        return scores - np.array(self.log_prior) if self.log_prior else scores

    def probabilities(self, log_probs: Any) -> Floats:
        """(rows, labels) probabilities that sum to 1 over the labels."""
        return softmax(self.scores(log_probs) / self.temperature)


def softmax(scores: Floats) -> Floats:
    """Probabilities in proportion to exp(score), over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def log_mean_probability(log_probs: Any) -> tuple[float, ...]:
    """The logarithm of the mean of the probabilities of (rows, labels) log-probabilities: the prior of these rows.

    The probabilities of each row are made to sum to 1 over the labels first (Zhao et al. 2021, section 5). A label
    that no row holds for possible counts as the smallest float64, so that the prior stays finite.
    """
    mean = softmax(np.asarray(log_probs, dtype=np.float64)).mean(axis=0)
    return tuple(np.log(np.maximum(mean, SMALLEST)).tolist())


def fit_temperature(scores: Any, targets: Any) -> float:
    """The temperature at which softmax(scores / T) has the smallest mean negative log-likelihood of the targets.

    Guo et al. 2017, section 4.2. The likelihood is convex in 1/T, so that its slope is bisected, in float64: the same
    scores give the same number everywhere. It lies from 0.01 to 100; at such an end where the best is beyond it (every
    row right, or no better than chance). Scores that do not tell labels apart, in any row, leave it at 1.

    Raises:
        ValueError: no row.
    """
    values, numbers = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    if not len(values):
        raise ValueError("no row to fit a temperature on")
    values = values - values.max(axis=1, keepdims=True)
    if not values.any():
        return 1.0
    wanted = values[np.arange(len(values)), numbers]

    def slope(log_inverse: float) -> float:
        """Of the negative log-likelihood, by 1/T."""
        expected = (softmax(np.exp(log_inverse) * values) * values).sum(axis=1)
        return float((expected - wanted).mean())

    low, high = -np.log(HIGHEST_TEMPERATURE), -np.log(LOWEST_TEMPERATURE)
    if slope(low) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(high) <= 0:
        return LOWEST_TEMPERATURE
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def fit_threshold(probabilities: Any, truth: Any) -> float | None:
    """The threshold of one label at which "as probable or more" has the largest F1 on labelled rows.

    It lies halfway between two probabilities of these rows, so that last digits decide nothing; of equal F1 the highest
    one is taken. None where no row that has the label holds it for possible: there is nothing to fit.

    Args:
        probabilities: (rows,) of the label.
        truth: (rows,) whether the row has it.
    """
    values, right = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=bool)
    order = np.argsort(-values, kind="stable")
    values, right = values[order], right[order]
    ends = np.flatnonzero(np.append(values[:-1] > values[1:], True) & (values > 0))  # the last row of each value
    hits = right.cumsum()[ends]
    if not hits.any():
        return None
    f1 = 2 * hits / (ends + 1 + right.sum())
    best = ends[int(f1.argmax())]
    below = values[best + 1] if best + 1 < len(values) else 0.0
    return float((values[best] + below) / 2)


class ProbabilityScores:
    """How well class probabilities fit the references; rows are added in parts, memory does not grow with them."""

    def __init__(self, bins: int = BINS) -> None:
        self.rows = 0
        self.bins = bins
        self._rows = np.zeros(bins, dtype=np.int64)
        self._confidence = np.zeros(bins)
        self._right = np.zeros(bins)
        self._squares = 0.0
        self._surprise = 0.0

    def add(self, probabilities: Any, targets: Any) -> None:
        """Take in (rows, labels) probabilities and the (rows,) right labels. The predicted label is the likeliest."""
        values, numbers = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.int64)
        if not len(values):
            return
        rows = np.arange(len(values))
        confidence = values.max(axis=1)
        right = values.argmax(axis=1) == numbers
        bins = np.clip(np.ceil(confidence * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self._rows += np.bincount(bins, minlength=self.bins)
        self._confidence += np.bincount(bins, weights=confidence, minlength=self.bins)
        self._right += np.bincount(bins, weights=right, minlength=self.bins)
        truth = np.zeros_like(values)
        truth[rows, numbers] = 1.0
        self._squares += float(((values - truth) ** 2).sum())
        self._surprise -= float(np.log(np.maximum(values[rows, numbers], SMALLEST)).sum())
        self.rows += len(values)

    def reliability(self) -> tuple[tuple[float, float, int], ...]:
        """(mean probability, share that is right, rows) of each bin that has rows."""
        filled = np.flatnonzero(self._rows)
        columns = (self._confidence[filled] / self._rows[filled], self._right[filled] / self._rows[filled])
        return tuple(zip(*(column.tolist() for column in (*columns, self._rows[filled])), strict=True))

    def metrics(self) -> dict[str, float]:
        """The three figures, all of them better the smaller; empty without a row.

        - `expected_calibration_error`: rows fall into bins of equal width by the probability of their predicted label,
          (0, 1/15], (1/15, 2/15], ...; the mean, weighted by the rows of a bin, of the distance between the bin's
          accuracy and its mean probability (Guo et al. 2017, equation 3). From 0 to 1.
        - `brier_score`: mean over the rows of the sum over all labels of (probability - 1 or 0)^2 (Brier 1950). From 0
          to 2; twice the figure that some give for two labels.
        - `negative_log_likelihood`: mean of -ln(probability of the right label), in nats.
        """
        if not self.rows:
            return {}
        return {
            "expected_calibration_error": float(np.abs(self._right - self._confidence).sum() / self.rows),
            "brier_score": self._squares / self.rows,
            "negative_log_likelihood": self._surprise / self.rows,
        }
