"""NSMC, the Naver movie reviews (columns id, document, label): is the review negative (0) or positive (1)?"""

from __future__ import annotations

from metrics.registry import LABELS, default_metrics
from postprocessors.labels import LabelMap
from task_utils import Task, register

for _name, _description, _input_template in (
    ("nsmc-naive", "sentiment of a Korean movie review, the review alone as input", "{{ source }}"),
    (
        "nsmc-prompted",
        "sentiment of a Korean movie review, with a prompt before it",
        "nsmc sentiment classification: {{ source }}",
    ),
):
    register(
        Task(
            _name,
            _description,
            source_column="document",
            target_column="label",
            input_template=_input_template,
            label_map=LabelMap((("0", "negative"), ("1", "positive"))),
            metrics=default_metrics(LABELS),
            hub_dataset="e9t/nsmc",
            valid_proportion=0.02,
        )
    )
