"""What decoding gives for a row."""

from __future__ import annotations

from dataclasses import dataclass

from models.generation import Hypothesis


@dataclass(frozen=True)
class Prediction:
    """The best output of a row, and what was asked for besides.

    `score` is the length-normalised log-probability, `nbest` the best outputs, `label_probabilities` one a label.
    """

    text: str
    score: float | None
    nbest: tuple[Hypothesis, ...] = ()
    label_probabilities: tuple[float, ...] | None = None
