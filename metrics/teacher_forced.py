"""What training measures on all validation rows: the model is given the reference, and nothing is generated."""

from __future__ import annotations

from metrics.registry import NATS, TEACHER_FORCED, Metric, register

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
)
