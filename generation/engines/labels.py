"""Labels by their probability, and what the workers are told about labels in general."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from config.flags.inference import DecodeFlags
from generation.batch_limits import BatchLimits
from generation.decoder import Decoder
from generation.engines.base import Prediction
from generation.highlighting import Highlighter, VariableWords
from generation.label_scoring import LabelScorer
from metrics.uncertainty.calibration import Floats, LabelCalibration, softmax
from metrics.uncertainty.conformal import NO_SILENCE, Silence
from postprocessors.labels import LabelMap
from utils.devices import Devices
from utils.errors import errors_at
from utils.padding import pad_sources

SETS = 32  # of labels that are looked at for a row: with up to 5 labels all there are
BEAMS_AT_ONCE = 2**11  # of all rows together
THRESHOLD = 0.5  # of a label's probability, where none is fitted


@dataclass(frozen=True)
class LabelDecoding:
    """How labels are predicted; `mode` is constrained or score, as in -label_decoding.

    `calibration` is that of the mode score, and so is `highlight`: the words of a source that are looked at, None where
    none are asked for; `limits` are those of a batch. `thresholds` are those of the labels, of rows that may have
    several. `silence` is what is made of the probabilities when the output is written; it decides none.
    """

    mode: str
    labels: LabelMap
    calibration: LabelCalibration = field(default_factory=LabelCalibration)
    highlight: VariableWords | None = None
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(128))
    thresholds: tuple[float, ...] = ()
    silence: Silence = NO_SILENCE

    def describe(self) -> list[Any]:
        """Everything that decides what is predicted, as JSON values.

        Numbers that are fitted have four significant digits: other numbers of threads round their last ones otherwise.
        """
        calibration = (*self.calibration.log_prior, self.calibration.temperature)
        numbers = [f"{number:.4g}" for number in (*calibration, *self.thresholds)]
        return [self.mode, list(self.labels.texts), self.labels.separator, numbers]


@dataclass(frozen=True)
class ScoreEngine:
    """The engine of `-label_decoding score`; calling it loads the model."""

    model: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    decoding: LabelDecoding
    devices: Devices

    def __call__(self, device: torch.device) -> ScorePredictor | SetPredictor:
        kind = SetPredictor if self.decoding.labels.separator else ScorePredictor
        predictor = kind(*self.model(), self.decoding, self.devices, device.index or 0)
        with self.devices.autocast():
            predictor.release()
        return predictor


class ScorePredictor:
    """A `BatchPredictor` of the most probable label, on the device of process `rank`.

    The score of a prediction is log P(label | source) under the model, without prior, temperature or length.

    Raises:
        UserError: labels that the model cannot score.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: LabelDecoding,
        devices: Devices,
        rank: int = 0,
    ) -> None:
        self.devices = devices
        self.device = devices.device(rank)
        model.to(self.device).eval()
        with errors_at("-label_decoding score"):
            self.scorer = LabelScorer(model, tokenizer, decoding.labels.texts)
        self.texts = decoding.labels.texts
        self.calibration = decoding.calibration
        self.pad_token_id = tokenizer.pad_token_id
        self.limits = decoding.limits
        self.highlighter = None if decoding.highlight is None else Highlighter(tokenizer, decoding.highlight)

    def without_words(self) -> ScorePredictor:
        """The same weights, and no look at the words of sources."""
        other = copy.copy(self)
        other.highlighter = None
        return other

    def log_probs(self, sources: Sequence[np.ndarray]) -> Floats:
        """(rows, labels) log P(label | source)."""
        with self.devices.autocast():
            scores = self.scorer(*pad_sources(sources, self.pad_token_id, self.device))
        log_probs: Floats = scores.cpu().numpy().astype(np.float64)
        return log_probs

    def __call__(
        self,
        row_ids: Sequence[int],  # noqa: ARG002 (nothing is drawn)
        sources: Sequence[np.ndarray],
        languages: Sequence[str] = (),  # noqa: ARG002 (labels have none)
    ) -> list[Prediction]:
        log_probs = self.log_probs(sources)
        best = self.calibration.scores(log_probs).argmax(axis=1).tolist()
        probabilities = self.calibration.probabilities(log_probs)
        words: Sequence[tuple[tuple[str, float], ...] | None] = [None] * len(sources)
        if self.highlighter:
            words = self.highlighter(sources, best, probabilities, self._probabilities)
        return [
            Prediction(self.texts[label], float(row[label]), label_probabilities=tuple(shares), words=of_row)
            for label, row, shares, of_row in zip(best, log_probs, probabilities.tolist(), words, strict=True)
        ]

    def release(self) -> None:
        """Hold the weights in the precision in force only."""
        self.scorer.release()

    def _probabilities(self, sources: Sequence[np.ndarray]) -> Floats:
        return self.calibration.probabilities(label_log_probs(self, sources, self.limits))


def label_log_probs(predictor: ScorePredictor, sources: Sequence[np.ndarray], limits: BatchLimits) -> Floats:
    """(rows, labels) log P(label | source) of all sources, in their order; like lengths are computed together."""
    found = np.empty((len(sources), len(predictor.texts)))
    for rows in limits.cut(np.array([len(source) for source in sources])):
        found[rows] = predictor.log_probs([sources[row] for row in rows])
    return found


class SetPredictor:
    """A `BatchPredictor` of the labels that are as probable as their threshold, of rows that may have several.

    The probability of a label is its share in those of the `SETS` likeliest sets of labels, found by constrained beam
    search. Label probabilities do not sum to 1. The score of a prediction is log P(set | source) of the likeliest set.

    Raises:
        UserError: labels that the model cannot write.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: LabelDecoding,
        devices: Devices,
        rank: int = 0,
    ) -> None:
        self.devices = devices
        self.device = devices.device(rank)
        self.labels = decoding.labels
        self.limits = replace(decoding.limits, rows=min(decoding.limits.rows, BEAMS_AT_ONCE // SETS))
        self.thresholds = decoding.thresholds
        self.pad_token_id = tokenizer.pad_token_id
        count = min(SETS, 2 ** len(self.labels.texts) - 1)
        with errors_at("-label_decoding score"):
            self.decoder = Decoder(model.to(self.device).eval(), tokenizer, DecodeFlags.likeliest(count), self.labels)

    def __call__(
        self,
        row_ids: Sequence[int],  # noqa: ARG002 (nothing is drawn)
        sources: Sequence[np.ndarray],
        languages: Sequence[str] = (),  # noqa: ARG002 (labels have none)
    ) -> list[Prediction]:
        found: dict[int, Prediction] = {}
        for rows in self.limits.cut(np.array([len(source) for source in sources])):
            predictions = self._predictions([sources[row] for row in rows])
            found.update(zip(rows.tolist(), predictions, strict=True))
        return [found[row] for row in range(len(sources))]

    def release(self) -> None:
        """Hold the weights in the precision in force only."""
        self.decoder.release()

    def _predictions(self, sources: Sequence[np.ndarray]) -> list[Prediction]:
        with self.devices.autocast():
            found = self.decoder.decode(*pad_sources(sources, self.pad_token_id, self.device))
        predictions = []
        for sets in found:
            shares = dict.fromkeys(self.labels.texts, 0.0)
            for labels, share in zip(sets, softmax(np.array([labels.score for labels in sets])), strict=True):
                for text in self.labels.value(labels.text) or ():
                    shares[text] += float(share)
            likely = [text for text, least in zip(shares, self.thresholds, strict=True) if shares[text] >= least]
            text = self.labels.separator.join(likely)
            predictions.append(Prediction(text, sets[0].score, label_probabilities=tuple(shares.values())))
        return predictions
