"""What a report says about label probabilities."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calibration import BINS, LabelCalibration, ProbabilityScores
from metrics import Scores
from postprocessors.labels import LabelMap

if TYPE_CHECKING:
    from models.predictions import Prediction

ROWS_AT_ONCE = 10_000
DETAILS = {
    "expected_calibration_error": f"0 to 1, {BINS} bins of equal width; the smaller the better",
    "brier_score": "0 to 2, sum over the labels; the smaller the better",
    "negative_log_likelihood": "nats; the smaller the better",
}


def with_probabilities(
    scores: Scores, references: Sequence[str | None], predictions: Sequence[Prediction], labels: LabelMap
) -> Scores:
    """`scores` with the metrics of label probabilities, over the rows that have a reference."""
    number = {text: label for label, text in enumerate(labels.texts)}
    found = ProbabilityScores()
    rows = (
        (prediction.label_probabilities, number[reference])
        for prediction, reference in zip(predictions, references, strict=True)
        if reference is not None and prediction.label_probabilities
    )
    while known := list(itertools.islice(rows, ROWS_AT_ONCE)):
        found.add([probabilities for probabilities, _ in known], [label for _, label in known])
    metrics = found.metrics()
    details = {name: text for name, text in DETAILS.items() if name in metrics}
    return dataclasses.replace(scores, metrics=scores.metrics | metrics, details={**scores.details, **details})


def calibration_settings(calibration: LabelCalibration, labels: LabelMap) -> dict[str, Any]:
    """How label probabilities came about, for a report: the temperature, and the prior of every label or None."""
    prior = (
        dict(zip(labels.texts, map(math.exp, calibration.log_prior), strict=True)) if calibration.log_prior else None
    )
    return {"temperature": calibration.temperature, "prior": prior}
