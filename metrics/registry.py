"""The metrics by name."""

from __future__ import annotations

TEXT_METRICS = ("exact_match", "chrf", "bleu", "rouge1", "rouge2", "rougeL")
LABEL_METRICS = ("accuracy", "accuracy_corrected", "macro_f1", "micro_f1")
METRIC_NAMES = (*TEXT_METRICS, *LABEL_METRICS)
