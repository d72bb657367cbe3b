"""How well the probabilities of labels fit the references: the metrics of `-label_decoding score`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from metrics.registry import METRICS, NATS, PROBABILITIES, Metric, register
from metrics.score import Scores

ROWS_AT_ONCE = 10_000

register(
    Metric("expected_calibration_error", PROBABILITIES, "0 to 1, 15 bins of equal width", higher_is_better=False),
    Metric("brier_score", PROBABILITIES, "0 to 2, sum over the labels", higher_is_better=False),
    Metric("negative_log_likelihood", PROBABILITIES, "nats", higher_is_better=False, scale=NATS),
)


def with_probabilities(
    scores: Scores, references: Iterable[str | None], probabilities: Iterable[Sequence[float] | None]
) -> Scores:
    """`scores` with the metrics of label probabilities, over the rows that have a reference.

    Args:
        probabilities: of each row one a label, in the order of `scores.postprocessor.texts`.
    """
    from metrics.calibration import ProbabilityScores

    number = {text: label for label, text in enumerate(scores.postprocessor.texts)}
    found = ProbabilityScores()
    rows = (
        (shares, number[reference])
        for shares, reference in zip(probabilities, references, strict=True)
        if reference is not None and shares
    )
    while known := list(itertools.islice(rows, ROWS_AT_ONCE)):
        found.add([shares for shares, _ in known], [label for _, label in known])
    metrics = found.metrics()
    details = {name: METRICS[name].description for name in metrics}
    return dataclasses.replace(scores, metrics=scores.metrics | metrics, details={**scores.details, **details})
