"""How well probabilities fit the references: of labels (`-label_decoding score`), and of the references' own tokens.

The latter training measures on all validation rows, without generating anything.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from metrics.f1 import mean
from metrics.registry import (
    DENOISED,
    METRICS,
    NATS,
    POINTS,
    PROBABILITIES,
    REFERENCES,
    TEACHER_FORCED,
    Metric,
    register,
)
from metrics.score import Scores
from utils.tables import counted

ROWS_AT_ONCE = 10_000
AUPRC = "klue_re_auprc"
PERPLEXITY = "perplexity"
LOSS_OF_TEXT = "val_loss_no_sentinels"

register(
    Metric(
        "val_loss",
        TEACHER_FORCED,
        "cross-entropy of the reference's tokens, mean over the tokens of all validation rows",
        higher_is_better=False,
        scale=NATS,
    ),
    Metric(
        "token_accuracy",
        TEACHER_FORCED,
        "share of the reference's tokens that are the likeliest, given those before them",
    ),
    Metric(
        LOSS_OF_TEXT,
        DENOISED,
        "val_loss of pretraining without sentinels and end tokens, mean over the tokens of the text",
        higher_is_better=False,
        scale=NATS,
    ),
    Metric(
        PERPLEXITY,
        REFERENCES,
        "exp of the mean cross-entropy of the references' tokens under the model",
        higher_is_better=False,
        scale=NATS,
        default=False,
    ),
    Metric("expected_calibration_error", PROBABILITIES, "0 to 1, 15 bins of equal width", higher_is_better=False),
    Metric("brier_score", PROBABILITIES, "0 to 2, sum over the labels", higher_is_better=False),
    Metric("negative_log_likelihood", PROBABILITIES, "nats", higher_is_better=False, scale=NATS),
    Metric(
        AUPRC,
        PROBABILITIES,
        "mean over the labels of the area under their precision-recall curve (KLUE-RE)",
        scale=POINTS,
        default=False,
    ),
)


def auprc(probabilities: Any, targets: Any) -> float:
    """Mean over the labels of the area under the precision-recall curve, 0 to 1, as KLUE-RE is scored.

    The curve goes over all different probabilities of a label and ends at recall 0 with precision 1; the area is that
    of the trapezoids. A label that no row has counts 0.5.

    Args:
        probabilities: (rows, labels).
        targets: (rows,) numbers of the right labels.
    """
    import numpy as np
    from sklearn.metrics import auc, precision_recall_curve

    areas = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that no row has
        for label, shares in enumerate(np.asarray(probabilities, dtype=np.float64).T):
            precision, recall, _ = precision_recall_curve(np.asarray(targets) == label, shares)
            areas.append(float(auc(recall, precision)))
    return mean(areas)


def with_probabilities(
    scores: Scores, references: Iterable[str | None], probabilities: Iterable[Sequence[float] | None]
) -> Scores:
    """`scores` with the metrics of label probabilities, over the rows that have a reference.

    `klue_re_auprc` is among them where `scores` was asked for it: it needs all probabilities in memory.

    Args:
        probabilities: of each row one a label, in the order of `scores.postprocessor.texts`.
    """
    import numpy as np

    from metrics.uncertainty.calibration import ProbabilityScores

    number = {text: label for label, text in enumerate(scores.postprocessor.texts)}
    found = ProbabilityScores()
    kept: list[Any] = []
    right: list[int] = []
    rows = (
        (shares, number[reference])
        for shares, reference in zip(probabilities, references, strict=True)
        if reference is not None and shares
    )
    while known := list(itertools.islice(rows, ROWS_AT_ONCE)):
        block, targets = np.array([shares for shares, _ in known]), [label for _, label in known]
        found.add(block, targets)
        if AUPRC in scores.metrics:
            kept.append(block)
            right += targets
    metrics = found.metrics()
    details = {name: METRICS[name].description for name in metrics}
    if kept:
        metrics[AUPRC] = 100 * auprc(np.concatenate(kept), right)
        unseen = len(number) - len(set(right))
        details[AUPRC] = f"area under precision and recall; {counted(unseen, 'label')} without a row: 0.5"
    return dataclasses.replace(
        scores,
        metrics=scores.metrics | metrics,
        details={**scores.details, **details},
        reliability=found.reliability(),
    )
