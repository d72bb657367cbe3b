"""What decoding gives for a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from generation.decoder import Hypothesis


@dataclass(frozen=True)
class Prediction:
    """The best output of a row, and what was asked for besides.

    `score` is the length-normalised log-probability of `text`, None when nobody asked for it; `nbest` the best outputs,
    best first, none when one was asked for; `label_probabilities` one a label, in the order of the label map; `cut`
    says that `text` reached the length limit before its end; `words` are those of the source, each with what the
    label's probability loses without it; `no_answer` is the probability that there is none, of the windows of a row;
    `vector` is what a row is as a vector (float16, bytes), where no text was asked for.
    """

    text: str
    score: float | None = None
    nbest: tuple[Hypothesis, ...] = ()
    label_probabilities: tuple[float, ...] | None = None
    cut: bool = False
    words: tuple[tuple[str, float], ...] | None = None
    no_answer: float = 0.0
    vector: bytes | None = None


class BatchPredictor(Protocol):
    """Predictions of a batch: what an engine gives."""

    def __call__(
        self, row_ids: Sequence[int], sources: Sequence[np.ndarray], languages: Sequence[str] = ()
    ) -> list[Prediction]:
        """One for each source (token ids); what is drawn at random depends on the row id, not on the batch.

        `languages` are the codes of the target languages, where rows have their own.
        """
