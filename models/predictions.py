"""What is predicted for a row, and the shape of everything that predicts batches of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.generation import Hypothesis


@dataclass(frozen=True)
class Prediction:
    """The output of a row, and what goes with it where it was asked for."""

    text: str
    score: float | None = None
    nbest: tuple[Hypothesis, ...] = ()
    label_probabilities: tuple[float, ...] | None = None  # in the order of the label map


class BatchPredictor(Protocol):
    """Predicts some rows at once: their ids, which a sample depends on, and the tokens of their sources."""

    def __call__(self, row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]: ...
