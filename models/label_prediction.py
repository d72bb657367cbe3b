"""Predictions that are labels: by a search among label texts, or by the log-probability of every label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibration import Floats, LabelCalibration
from errors import errors_at
from models.devices import Devices
from models.forward import pad_sources
from models.generation import Decoder, DecodingOptions
from models.label_scoring import LabelScorer
from models.predictions import Prediction


@dataclass(frozen=True)
class LabelDecoding:
    """How labels are predicted; `mode` is a word of -label_decoding other than generate.

    With a `separator` a text may be several labels. `calibration` is that of the mode score.
    """

    mode: str
    texts: tuple[str, ...]
    separator: str = ""
    calibration: LabelCalibration = field(default_factory=LabelCalibration)


class SearchPredictor:
    """The best text that a search finds; among the labels only, if some are given."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: DecodingOptions,
        labels: LabelDecoding | None,
        device: torch.device,
    ) -> None:
        texts, separator = (labels.texts, labels.separator) if labels else ((), "")
        with errors_at("-label_decoding constrained" if labels else "-model"):
            self.decoder = Decoder(model, tokenizer, options, texts, label_separator=separator)
        self.pad_token_id = tokenizer.pad_token_id
        self.device = device

    def __call__(self, row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]:  # noqa: ARG002
        return [Prediction(text) for text in self.decoder(*pad_sources(sources, self.pad_token_id, self.device))]


class ScorePredictor:
    """The most probable label; its score is log P(label | source), that of the model: without prior and temperature."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: LabelDecoding, device: torch.device
    ) -> None:
        with errors_at("-label_decoding score"):
            self.scorer = LabelScorer(model, tokenizer, labels.texts)
        self.labels = labels
        self.pad_token_id = tokenizer.pad_token_id
        self.device = device

    def log_probs(self, sources: Sequence[np.ndarray]) -> Floats:
        """(rows, labels) log P(label | source)."""
        scores = self.scorer(*pad_sources(sources, self.pad_token_id, self.device))
        log_probs: Floats = scores.cpu().numpy().astype(np.float64)
        return log_probs

    def __call__(self, row_ids: Sequence[int], sources: Sequence[np.ndarray]) -> list[Prediction]:  # noqa: ARG002
        log_probs = self.log_probs(sources)
        best = self.labels.calibration.scores(log_probs).argmax(axis=1).tolist()
        probabilities = self.labels.calibration.probabilities(log_probs).tolist()
        return [
            Prediction(self.labels.texts[label], float(row[label]), label_probabilities=tuple(shares))
            for label, row, shares in zip(best, log_probs, probabilities, strict=True)
        ]


def label_log_probs(
    predictor: ScorePredictor, sources: Sequence[np.ndarray], batch_size: int, devices: Devices
) -> Floats:
    """(rows, labels) log P(label | source) of all sources, in their order; like lengths are computed together."""
    order = np.argsort([-len(source) for source in sources], kind="stable")
    found = np.empty((len(sources), len(predictor.labels.texts)))
    with devices.autocast():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found[rows] = predictor.log_probs([sources[row] for row in rows])
    return found
