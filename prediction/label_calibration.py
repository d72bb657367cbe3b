"""How labels are predicted, before the first row: what the flags ask for, prior, temperature, and thresholds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from config.flags.inference import InferenceConfig, LabelFlags
from config.templates import Template
from datamodules.encoding.store import EncodedSplit
from datamodules.encoding.tokens import make_encoder
from datamodules.splits import RowEncoder, evenly_spaced, report_lines
from generation.batch_limits import BatchLimits
from generation.engines.labels import THRESHOLD, LabelDecoding, ScorePredictor, SetPredictor, label_log_probs
from generation.highlighting import VariableWords
from metrics.uncertainty.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    LabelCalibration,
    fit_temperature,
    fit_threshold,
    log_mean_probability,
)
from metrics.uncertainty.conformal import NO_SILENCE, AnswerRule, SetRule, Silence, rows_for_answers, rows_for_sets
from postprocessors.base import Postprocessor
from postprocessors.labels import LabelMap, allowed_labels
from prediction.parts import significant
from utils.devices import Devices
from utils.errors import UserError, errors_at, raise_if_any, shortened
from utils.tables import counted

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5
DOMAIN_ROWS = 1000
SHARING_SEED = 0  # of the rows of -calibrate that the rules of -label_sets and -abstain have

Load = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def asked_decoding(config: InferenceConfig, postprocessor: Postprocessor, encoder: RowEncoder) -> LabelDecoding | None:
    """What -label_decoding asks for, not calibrated; None for plain generation."""
    mode, labels = config.label.label_decoding, allowed_labels(postprocessor)
    if labels is None or mode == "generate":
        return None
    template = Template(encoder.task.input_template, "-input_template")
    highlight = VariableWords(template.parts or ()) if config.label.highlight else None
    thresholds = (THRESHOLD,) * len(labels.texts) if labels.separator and mode == "score" else ()
    return LabelDecoding(mode, labels, highlight=highlight, limits=BatchLimits.of(config.decode), thresholds=thresholds)


def label_decoding(
    config: InferenceConfig,
    postprocessor: Postprocessor,
    load: Load,
    encoder: RowEncoder,
    split: EncodedSplit | None,
    devices: Devices,
    say: Callable[..., None],
) -> LabelDecoding | None:
    """What the workers are told about labels; None for plain generation.

    What is fitted is found here, once, on the first device, so that all workers use the same numbers.

    Args:
        split: the rows to predict; the prior of the domain is taken from them, and needs them.
        say: prints lines for the user.

    Raises:
        UserError: -calibrate or -thresholds without a reference; a template that no content-free text can be put in.
    """
    flags = config.label
    decoding = asked_decoding(config, postprocessor, encoder)
    if decoding is None or decoding.mode == "constrained":
        return decoding
    decoding = replace(decoding, calibration=LabelCalibration(temperature=flags.label_temperature))
    labelled = LabelledRows.of(flags, decoding.labels, encoder, say) if flags.calibrate else None
    if flags.label_prior != "none" or flags.calibrate or flags.thresholds:
        model, tokenizer = load()
        if decoding.labels.separator:
            sets = SetPredictor(model, tokenizer, decoding, devices)
            decoding = replace(decoding, thresholds=_fitted_thresholds(flags.thresholds, sets, encoder, say))
            del sets
        else:
            predictor = ScorePredictor(model, tokenizer, decoding, devices)
            calibration = _calibrated(config, predictor, encoder, split, labelled, say)
            silence = _silence(config, predictor, calibration, labelled, say) if labelled else NO_SILENCE
            decoding = replace(decoding, calibration=calibration, silence=silence)
            del predictor
        del model
        gc.collect()
        if devices.accelerator == "cuda":
            torch.cuda.empty_cache()
    return decoding


@dataclass(frozen=True)
class LabelledRows:
    """Token ids and numbers of the right labels of rows of -calibrate.

    Where rules of -label_sets and -abstain are fitted, they have half of the rows for themselves: `for_rules`, drawn
    from a fixed seed. Rows that chose the temperature as well would look better than those to come.
    """

    sources: list[np.ndarray]
    targets: list[int]
    shared: bool  # between temperature and rules

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def of(cls, flags: LabelFlags, labels: LabelMap, encoder: RowEncoder, say: Callable[..., None]) -> LabelledRows:
        """Read the rows.

        Raises:
            UserError: no row with a label; fewer than the rules need.
        """
        sources, references = _labelled_rows("-calibrate", flags.calibrate, encoder, say)
        number = {text: label for label, text in enumerate(labels.texts)}
        shared = bool(flags.label_sets or flags.abstain)
        order = np.arange(len(sources))
        if shared:  # a file in which labels take turns would give each half others
            np.random.default_rng(SHARING_SEED).shuffle(order)
        rows = cls([sources[row] for row in order], [number[references[row]] for row in order], shared)
        needed = {
            f"-label_sets {flags.label_sets:g}": rows_for_sets(flags.label_sets) if flags.label_sets else 0,
            f"-abstain {flags.abstain:g}": rows_for_answers(flags.abstain) if flags.abstain else 0,
        }
        raise_if_any(
            f"{flag} needs {2 * count:,} labelled rows of -calibrate, half of them for the temperature, and"
            f" {flags.calibrate} has {len(rows):,}; give more rows, or ask for less"
            for flag, count in needed.items()
            if len(rows.for_rules) < count
        )
        return rows

    @property
    def for_temperature(self) -> LabelledRows:
        return self._part(0) if self.shared else self

    @property
    def for_rules(self) -> LabelledRows:
        return self._part(1)

    def _part(self, first: int) -> LabelledRows:
        return LabelledRows(self.sources[first::2], self.targets[first::2], self.shared)


def _labelled_rows(
    flag: str, path: str, encoder: RowEncoder, say: Callable[..., None]
) -> tuple[list[np.ndarray], list[str]]:
    """Token ids and references of the rows of `path` that have a reference."""
    rows = encoder.encode(flag, (path,), keep_all=True)
    say(*report_lines(flag, rows.report))
    known = [(row, reference) for row in range(len(rows)) if (reference := rows.reference(row)) is not None]
    if not known:
        raise UserError(f"{flag} {path}: no row has a label; give a labelled validation file")
    return [rows.source_ids(row) for row, _ in known], [reference for _, reference in known]


def _fitted_thresholds(
    path: str, predictor: SetPredictor, encoder: RowEncoder, say: Callable[..., None]
) -> tuple[float, ...]:
    """The threshold of every label, `THRESHOLD` where the rows cannot tell."""
    sources, references = _labelled_rows("-thresholds", path, encoder, say)
    shares = np.array([found.label_probabilities for found in predictor(range(len(sources)), sources)])
    values = [predictor.labels.value(reference) or () for reference in references]
    thresholds, told, missing = [], [], []
    for label, text in enumerate(predictor.labels.texts):
        truth = np.array([text in value for value in values])
        fitted = fit_threshold(shares[:, label], truth)
        thresholds.append(THRESHOLD if fitted is None else fitted)
        told += [] if fitted is None else [f"{text} {fitted:.4g}"]
        why = "not probable in any row that has it" if truth.any() else "no row has it"
        missing += [f"{text} ({why})"] if fitted is None else []
    say(f"-thresholds: fitted on {counted(len(sources), 'labelled row')}: {shortened(told) or 'none'}")
    if missing:
        say(f"-thresholds: nothing to fit, so {THRESHOLD:g}, for {shortened(missing)}")
    return tuple(thresholds)


def _calibrated(
    config: InferenceConfig,
    predictor: ScorePredictor,
    encoder: RowEncoder,
    split: EncodedSplit | None,
    labelled: LabelledRows | None,
    say: Callable[..., None],
) -> LabelCalibration:
    flags, limits = config.label, BatchLimits.of(config.decode)
    calibration = LabelCalibration(temperature=flags.label_temperature)
    if flags.label_prior != "none":
        contextual = flags.label_prior == "contextual"
        sources = content_free_sources(encoder) if contextual else domain_sources(split)
        prior = log_mean_probability(label_log_probs(predictor, sources, limits))
        calibration = replace(calibration, log_prior=prior)
        shown = ", ".join(f"{text} {share:.4f}" for text, share in zip(predictor.texts, np.exp(prior), strict=True))
        of = f"{len(sources):,} content-free inputs" if contextual else f"{len(sources):,} rows of the input"
        say(f"-label_prior {flags.label_prior}: mean probabilities of {of}: {shown}")
    if labelled:
        fitted = labelled.for_temperature
        scores = calibration.scores(label_log_probs(predictor, fitted.sources, limits))
        calibration = replace(calibration, temperature=fit_temperature(scores, fitted.targets))
        say(f"-calibrate: temperature {calibration.temperature:.6g}, fitted on {len(fitted):,} labelled rows")
        say(*_outside_the_range(calibration.temperature))
    return calibration


def _silence(
    config: InferenceConfig,
    predictor: ScorePredictor,
    calibration: LabelCalibration,
    labelled: LabelledRows,
    say: Callable[..., None],
) -> Silence:
    """The rules of -label_sets and -abstain, fitted on rows that fitted nothing else."""
    flags, fitted = config.label, labelled.for_rules
    if not (flags.label_sets or flags.abstain):
        return NO_SILENCE
    log_probs = label_log_probs(predictor, fitted.sources, BatchLimits.of(config.decode))
    probabilities = np.vectorize(significant)(calibration.probabilities(log_probs))  # as they are written
    sets = answers = None
    if flags.label_sets:
        sets = SetRule.fit(probabilities, fitted.targets, flags.label_sets)
        say(f"-label_sets {sets.level:g}: labels of probability {sets.least:g} or more, by {sets.rows:,} other rows")
    if flags.abstain:
        with errors_at(f"-abstain {flags.abstain:g}"):
            answers = AnswerRule.fit(probabilities, fitted.targets, flags.abstain)
        say(
            f"-abstain {answers.rate:g}: answered where a label is more probable than {answers.above:g}, by"
            f" {answers.rows:,} other rows"
        )
    return Silence(sets, answers)


def _outside_the_range(temperature: float) -> list[str]:
    """What to tell, and to do, where the best temperature lies beyond those that are looked at."""
    if temperature == LOWEST_TEMPERATURE:
        why = "these rows are all predicted right, so that more sure is always better; take more or harder rows"
        return [f"-calibrate: the best temperature lies below {temperature:g}, the lowest one that is tried: {why}"]
    if temperature == HIGHEST_TEMPERATURE:
        why = "the model does no better on these rows than chance; look at their labels, or take other rows"
        return [f"-calibrate: the best temperature lies above {temperature:g}, the highest one that is tried: {why}"]
    return []


def content_free_sources(encoder: RowEncoder) -> list[np.ndarray]:
    """Token ids of the inputs that say nothing: every column of the input template is `N/A`, `[MASK]`, or empty.

    Raises:
        UserError: the template cannot be rendered with such a text.
    """
    template = Template(encoder.task.input_template, "-input_template")
    texts = []
    for text in CONTENT_FREE:
        try:
            texts.append(template.render(dict.fromkeys(template.variables, text)))
        except ValueError as error:
            raise UserError(
                f"-label_prior contextual: {template.name} {template.source!r} cannot be rendered with {text!r} as"
                f" every column ({error}); use -label_prior domain"
            ) from None
    tokens = make_encoder(encoder.tokenizer).encode(pa.array(texts, pa.large_string()), encoder.source_limit, False)
    return [tokens.row(row) for row in range(len(texts))]


def domain_sources(split: EncodedSplit | None) -> Sequence[np.ndarray]:
    """Token ids of up to 1,000 rows to predict, evenly spaced over the input."""
    if split is None:
        raise UserError("-label_prior domain: it is the mean of the rows of a file; use contextual")
    return [split.source_ids(int(row)) for row in evenly_spaced(len(split), DOMAIN_ROWS)]
