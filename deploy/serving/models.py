"""Models that answer requests: what a row must have, and what is answered for it.

An answer is what `inference.py -save_output X.jsonl` writes for the same row and flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.model_paths import EXPORTS
from config.flags.serve import ServeConfig
from datamodules.json_rows import EncodedRequest, JsonRowEncoder
from generation.batch_limits import BatchLimits
from generation.engines.base import BatchPredictor, Prediction
from generation.engines.ctranslate2 import PARITY_TEXTS
from generation.engines.labels import ScorePredictor
from generation.engines.pytorch import TorchPredictor
from metrics.uncertainty.conformal import NO_SILENCE, Silence
from postprocessors.answers import Answers
from postprocessors.labels import LabelMap, allowed_labels
from prediction.label_calibration import label_decoding
from prediction.output import OutputForm, OutputRow, label_ids, record_of
from prediction.parts import as_written
from prediction.setup import Ready, answer_of, make_engine, prepare
from prediction.windows import combined
from utils.console import tell
from utils.errors import UserError, raise_if_any


@dataclass(frozen=True)
class Options:
    """What a request asks for, within the flags."""

    beam_size: int
    num_return: int
    highlight: bool = False


@dataclass
class ServedModel:
    """A loaded model; only the thread that decodes calls `predict`."""

    name: str
    ready: Ready
    encoder: JsonRowEncoder
    predictor: BatchPredictor
    silence: Silence = NO_SILENCE
    longest: int = 0  # tokens of a source; 0 = no limit
    _others: dict[tuple[int, bool], BatchPredictor] = field(default_factory=dict)  # of the same weights

    def __post_init__(self) -> None:
        config = self.ready.config
        self.limits = BatchLimits.of(config.decode)
        self.answer = answer_of(self.ready.postprocessor, config.output)
        labels = allowed_labels(self.ready.postprocessor)
        self.labels: tuple[str, ...] = labels.texts if labels else ()
        self.label_ids = label_ids(self.ready.postprocessor)
        self.scores_labels = config.label.label_decoding == "score"

    @property
    def fewest_beams(self) -> int:
        """The fewest beams that a request may ask for; the most are those of -beam_size."""
        decode = self.ready.config.decode
        free = isinstance(self.predictor, TorchPredictor) and not decode.do_sample and not decode.compile
        return 1 if free else decode.beam_size

    def describe(self) -> dict[str, Any]:
        """What a client needs to know: columns, labels, and the ranges of the options."""
        config, postprocessor = self.ready.config, self.ready.postprocessor
        return {
            "name": self.name,
            "task": self.ready.task.name,
            "columns": list(self.encoder.columns),
            "labels": list(self.labels),
            "several_labels": isinstance(postprocessor, LabelMap) and bool(postprocessor.separator),
            "label_probabilities": self.scores_labels,
            "beam_size": {"least": self.fewest_beams, "most": config.decode.beam_size},
            "num_return": {"least": 1, "most": config.decode.num_return},
            "highlight": config.label.highlight,
            "engine": config.decode.engine,
        }

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> EncodedRequest:
        """Token ids of rows.

        Raises:
            UserError: one that cannot be encoded, or is too long.
        """
        encoded = self.encoder(rows)
        lengths = [sum(map(len, windows)) for windows in encoded.sources]
        raise_if_any(
            f"row {number}: {length:,} tokens; a source may have {self.longest:,}"
            for number, length in enumerate(lengths, 1)
            if self.longest and length > self.longest
        )
        return encoded

    def predict(
        self, row_ids: Sequence[int], sources: Sequence[np.ndarray], languages: Sequence[str], options: Options
    ) -> list[Prediction]:
        """One for each source, decoded in as many batches as the limits ask for."""
        predictor = self._predictor(options)
        found: dict[int, Prediction] = {}
        with self.ready.devices.autocast():
            for batch in self.limits.cut(np.array([len(source) for source in sources])):
                rows = batch.tolist()
                codes = [languages[row] for row in rows] if languages else []
                predictions = predictor([row_ids[row] for row in rows], [sources[row] for row in rows], codes)
                found.update(zip(rows, predictions, strict=True))
        return [found[row] for row in range(len(sources))]

    def record(self, windows: Sequence[Prediction], options: Options, source_cut: bool) -> dict[str, Any]:
        """The answer for a row, as JSON values; `windows` are the predictions of its windows (-doc_stride), or one."""
        asked = [replace(one, nbest=one.nbest[: options.num_return]) for one in map(as_written, windows)]
        prediction, is_windowed = asked[0], self.ready.config.length.doc_stride > 0
        if is_windowed:
            assert isinstance(self.ready.postprocessor, Answers)  # no others are cut into windows
            prediction = combined(asked, self.ready.postprocessor, options.num_return)
        form = OutputForm(
            labels=self.labels if self.scores_labels else (),
            nbest=options.num_return > 1,
            label_ids=self.label_ids,
            words=options.highlight,
            probabilities=is_windowed,
            silence=self.silence,
        )
        answer = "" if self.silence.abstains(prediction.label_probabilities) else self.answer(prediction.text)
        record = record_of(OutputRow(0, "", None, answer, prediction), form)
        written = {name: value for name, value in record.items() if name not in ("id", "source", "reference")}
        return {**written, "source_cut": source_cut, "prediction_cut": prediction.cut}

    def _predictor(self, options: Options) -> BatchPredictor:
        key = (options.beam_size, options.highlight)
        if key not in self._others:
            self._others[key] = self._with(options)
        return self._others[key]

    def _with(self, options: Options) -> BatchPredictor:
        config, predictor = self.ready.config, self.predictor
        if isinstance(predictor, TorchPredictor) and options.beam_size != config.decode.beam_size:
            return predictor.with_beams(options.beam_size)
        if isinstance(predictor, ScorePredictor) and not options.highlight:
            return predictor.without_words()
        return predictor


def load_models(config: ServeConfig, given: frozenset[str], temporary: Path) -> list[ServedModel]:
    """The models of -model, ready to answer, in their order.

    Raises:
        UserError: what `prepare` and `make_engine` raise.
    """
    names, models = short_names(config.serve.model), []
    for name, value in zip(names, config.serve.model, strict=True):
        ready = prepare(config.of_model(value), given, temporary)
        encoder = JsonRowEncoder(ready.encoder)
        decoding = label_decoding(
            ready.config, ready.postprocessor, ready.models[0], ready.encoder, None, ready.devices, tell
        )
        texts = [dict.fromkeys(encoder.columns, text) for text in PARITY_TEXTS]
        examples = [windows[0] for windows in encoder(texts).sources]
        engine = make_engine(ready, decoding, examples)
        with ready.devices.autocast():
            predictor = engine(ready.devices.device(0))
        silence = decoding.silence if decoding else NO_SILENCE
        models.append(ServedModel(name, ready, encoder, predictor, silence, config.serve.max_source))
        tell(f"{name}: task {ready.task.name}, columns {', '.join(encoder.columns)}")
    return models


def short_names(values: Sequence[str]) -> list[str]:
    """A name for each model: the last part of its path that tells it from the others.

    Raises:
        UserError: one model is given twice.
    """
    if len(set(map(Path, values))) < len(values):
        raise UserError(f"-model {' '.join(values)}: one of them is given twice")
    folders = [[part for part in Path(value).parts if part != "/"] or [value] for value in values]
    runs = [parts[:-1] if parts[-1] in EXPORTS and len(parts) > 1 else parts for parts in folders]
    joined = [[*parts[:-2], "/".join(parts[-2:])] if parts[-1] in EXPORTS else parts for parts in folders]
    for names in (runs, joined):
        for count in range(1, max(map(len, names)) + 1):
            short = ["/".join(parts[-count:]) for parts in names]
            if len(set(short)) == len(short):
                return short
    return list(values)
