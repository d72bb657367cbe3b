"""Predicts the rows of files, or the lines of standard input: load -> predict -> write -> score -> report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config.flags.inference import InferenceConfig
from config.parser import deciding_flags, to_dict
from datamodules.encoding.store import EncodedSplit
from datamodules.lines import LineEncoder
from datamodules.readers.records import InputRecords
from datamodules.readers.requests import check_requests
from datamodules.splits import prediction_split
from generation.batch_limits import BatchLimits
from generation.engines.base import Prediction
from generation.engines.ctranslate2 import PARITY_TEXTS
from generation.engines.labels import LabelDecoding
from generation.incremental.compiled import compilations
from generation.perplexity import perplexity
from metrics.answers import with_no_answer
from metrics.registry import Figure, missing_packages
from metrics.report import calibration_settings, report_dict, report_text
from metrics.score import CHOSEN, Scores, score, with_figure
from metrics.uncertainty.conformal import NO_SILENCE, SilenceScores, silence_scores
from metrics.uncertainty.probabilities import PERPLEXITY, with_probabilities
from postprocessors.answers import Answers
from postprocessors.base import said
from prediction.checks import named_metrics
from prediction.confidence import confidence_of
from prediction.groups import Groups, group_dict, groups_of
from prediction.label_calibration import asked_decoding
from prediction.lazy_sequence import LazySequence
from prediction.output import (
    OutputForm,
    OutputRow,
    RequestAnswers,
    answer_to_line,
    label_ids,
    one_line,
    output_rows,
    outputs_of,
    plain_lines,
    write_lines,
    write_rows,
)
from prediction.parts import Chunks, Parts
from prediction.parts_folder import open_parts
from prediction.predict import finished_rows, predict
from prediction.setup import (
    Ready,
    answer_of,
    find_label_decoding,
    first_sources,
    largest_distance,
    make_engine,
    prepare,
)
from prediction.streaming import claim_standard_output, stream, waiting_lines
from prediction.windows import by_row
from prediction.workers.ranks import Shared
from prediction.written_report import look_at_predictions, save_report
from utils.console import STANDARD_STREAMS, give_up_if_full, tell
from utils.digests import tokenizer_digest
from utils.errors import RunError, Terminated, raise_if_any
from utils.files import run_error
from utils.tables import counted


@dataclass(frozen=True)
class Predicted:
    """Rows with a prediction each, and how these came about."""

    ready: Ready
    split: EncodedSplit
    decoding: LabelDecoding | None
    predictions: Sequence[Prediction]

    @property
    def references(self) -> Sequence[str | None]:
        """The reference of every row, None where there is none; as `texts` read one by one."""
        return LazySequence(len(self.split), self.split.reference)

    @property
    def texts(self) -> Sequence[str]:
        """The prediction of every row, not corrected."""
        return LazySequence(len(self.split), lambda row: self.predictions[row].text)


def run(config: InferenceConfig, given: frozenset[str], shared: Shared) -> None:
    """Predict the rows of files."""
    requests = InputRecords(config.data.test_data) if config.output.openai_batch else None
    if requests:  # as they are now, before the check
        tell(*check_requests("-test_data", config.data.test_data))
    ready = prepare(config, given, shared.folder, shared.first)
    split, records, groups = rows_of(ready, requests)
    with predicted(ready, split) as found:
        finish(found, records, groups)


def rows_of(
    ready: Ready, requests: InputRecords | None = None
) -> tuple[EncodedSplit, InputRecords | None, Groups | None]:
    """The encoded rows, the records that are written with them, and their groups."""
    config = ready.config
    raise_if_any(missing_packages(ready.task.metrics))
    paths = config.data.test_data or config.data.valid_data
    records = InputRecords(paths, ready.task.layout) if config.output.keep_fields else requests
    split, lines = prediction_split(ready.encoder)
    tell(*lines, f"task {ready.task.name}; {said(ready.postprocessor)}")
    escapes, headers = config.data.tsv_escapes, split.report.headers
    groups = groups_of(config.output.group_by, paths, ready.task.layout, headers, escapes)
    return split, records, groups or Groups.of_directions(split)


@contextmanager
def predicted(ready: Ready, split: EncodedSplit, words_of: str = "") -> Iterator[Predicted]:
    """A prediction for each row of `split`. When the block ends without an error, the finished parts go.

    Args:
        words_of: the variable of the input template whose words -highlight looks at; "" = all.
    """
    decoding = find_label_decoding(ready, split)
    if decoding and decoding.highlight:
        decoding = replace(decoding, highlight=replace(decoding.highlight, only=words_of))
    with parts_of(ready, split, decoding) as parts:
        finish_parts(ready, split, decoding, parts)
        with read_parts(ready, split, decoding, parts) as found:
            yield found


def finish_parts(ready: Ready, split: EncodedSplit, decoding: LabelDecoding | None, parts: Path) -> None:
    """Predict the rows of `split` that no part in the folder `parts` has yet."""
    engine = make_engine(ready, decoding, first_sources(split))
    limits, kept = BatchLimits.of(ready.config.decode), bool(ready.config.output.save_output)
    with telling_what_is_kept(split, limits, parts, kept):
        predict(engine, split, limits, ready.devices, parts, ready.first).close()


@contextmanager
def read_parts(ready: Ready, split: EncodedSplit, decoding: LabelDecoding | None, parts: Path) -> Iterator[Predicted]:
    """The predictions of all rows from the folder of their parts, whose files are open in the block alone."""
    with Parts(parts, Chunks.of(split.source_lengths, BatchLimits.of(ready.config.decode))) as predictions:
        found: tuple[EncodedSplit, Sequence[Prediction]] = split, predictions
        if ready.config.length.doc_stride:
            found = by_row(*found, ready.postprocessor, ready.config.decode.num_return)
        yield Predicted(ready, found[0], decoding, found[1])


def run_stream(config: InferenceConfig, given: frozenset[str], shared: Shared) -> None:
    """Predict the lines of standard input as they come; on standard output are predictions alone."""
    with claim_standard_output() as output:
        ready = prepare(config, given, shared.folder, shared.first)
        escapes = ready.config.data.tsv_escapes
        encode = LineEncoder(ready.encoder)
        decoding = asked_decoding(ready.config, ready.postprocessor, ready.encoder)
        engine = make_engine(ready, decoding, encode.examples(PARITY_TEXTS))
        answer, answers = answer_of(ready.postprocessor, config.output), request_answers(ready)

        def line_of(line: bytes, source: np.ndarray, found: Prediction) -> bytes:
            written = one_line(answer(found.text), escapes)
            if answers:
                row = OutputRow(0, "", None, answer(found.text), found, source_tokens=len(source))
                written = answer_to_line(line, row, answers)
            return f"{written}\n".encode("utf-8", "replace")

        with ready.devices.autocast():
            limits = BatchLimits.of(ready.config.decode)
            lines = waiting_lines(sys.stdin.fileno(), limits.rows)
            try:
                count = stream(lines, encode, engine(ready.devices.device(0)), line_of, output, limits)
            finally:
                tell(*encode.report(), *compilations())
        tell(f"{counted(count, 'line')} predicted")


def request_answers(ready: Ready) -> RequestAnswers | None:
    """How requests are answered; None where rows are none."""
    if not ready.config.output.openai_batch:
        return None
    return RequestAnswers.of([model.name for model in ready.models], ready.encoder.tokenizer)


@contextmanager
def parts_of(ready: Ready, split: EncodedSplit, decoding: LabelDecoding | None, kind: str = "texts") -> Iterator[Path]:
    """The folder of finished parts: beside -save_output until all is written, else a temporary one.

    Args:
        kind: what the parts hold, where that is not texts.
    """
    config = ready.config
    if not config.output.save_output:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    identity = {
        "rows": len(split),
        "input (token ids)": split.fingerprint,
        "input (texts)": split.text_digest(),
        "-model": [model.identity() for model in ready.models],
        "-tokenizer": tokenizer_digest(ready.encoder.tokenizer),
        **deciding_flags(config),
        "labels": decoding.describe() if decoding else None,
        "device": ready.devices.accelerator,
        "-float_precision": ready.devices.arithmetic,
        **({} if kind == "texts" else {"parts": kind}),
    }
    with open_parts(Path(config.output.save_output), identity, config.output.overwrite) as folder:
        yield folder


@contextmanager
def telling_what_is_kept(split: EncodedSplit, limits: BatchLimits, parts: Path, kept: bool) -> Iterator[None]:
    """Say at a stop how much is finished and how it is completed."""

    def words() -> str:
        rows = finished_rows(split, limits, parts)
        return f"{rows:,} of {len(split):,} {split.unit}s are finished, in {parts}; the same command goes on from there"

    try:
        yield
    except (KeyboardInterrupt, Terminated):
        give_up_if_full(*STANDARD_STREAMS)
        tell(words() if kept else "nothing is kept without -save_output")
        raise
    except RunError as error:
        raise RunError(f"{error}; {words()}" if kept else str(error)) from error


def finish(found: Predicted, records: InputRecords | None = None, groups: Groups | None = None) -> None:
    """Write the predictions and references that were asked for; then score them, print, and write the report.

    Scoring comes last: whatever happens there, hours of prediction are not lost.
    """
    write_outputs(found, records)
    write_report(found, groups)


def write_outputs(found: Predicted, records: InputRecords | None = None) -> None:
    """Write the predictions and references that were asked for."""
    ready, split, predictions = found.ready, found.split, found.predictions
    config, postprocessor = ready.config, ready.postprocessor
    output, data = config.output, config.data
    for name in filter(None, (output.save_output, output.save_label, output.save_report)):
        with run_error(Path(name)):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
    if output.save_output:
        kept = records.rows(split.report.headers, data.tsv_escapes) if records else None
        silence = found.decoding.silence if found.decoding else NO_SILENCE
        rows = output_rows(predictions, split, answer_of(postprocessor, output), kept, silence)
        shown = postprocessor.texts if config.label.label_decoding == "score" else ()
        ids = label_ids(postprocessor)
        form = OutputForm(
            data.tsv_escapes,
            shown,
            config.decode.num_return > 1,
            kept is not None,
            ids,
            config.label.highlight,
            config.length.doc_stride > 0,
            silence,
            request_answers(ready),
        )
        write_rows(Path(output.save_output), rows, form, output.overwrite)
        tell(f"predictions written to {output.save_output}")
    if output.save_label:
        lines = plain_lines((text or "" for text in found.references), data.tsv_escapes)
        write_lines(Path(output.save_label), lines, output.overwrite)
        tell(f"references written to {output.save_label}")


def write_report(
    found: Predicted, groups: Groups | None = None, scores: Scores | None = None, more: Mapping[str, Any] | None = None
) -> None:
    """Score what was not scored yet, print, and write the report.

    Args:
        more: what else the report holds.
    """
    ready, split, predictions, references = found.ready, found.split, found.predictions, found.references
    config, output = ready.config, ready.config.output
    scores, report = scored(found, scores)
    report |= more or {}
    if groups:
        by_group = groups.scores(references, found.texts, scorer(ready))
        tell(*groups.lines(by_group))
        report["groups"] = group_dict(by_group)
    if output.confidence and scores.scored_rows:
        confidence = confidence_of(output.confidence, scores, references, found.texts, ready.postprocessor)
        tell(*confidence.lines())
        report["confidence"] = confidence.to_dict()
    if output.save_report:
        tokenizer, cut_offs = ready.encoder.tokenizer, (ready.encoder.source_limit, longest_prediction(found))
        about = (f"task {ready.task.name}", *(model.name for model in ready.models), *config.data.test_data)
        save_report(output, report, lambda: look_at_predictions(scores, split, predictions, tokenizer, cut_offs), about)


def longest_prediction(found: Predicted) -> int:
    """The most tokens that are generated; 0 where labels are scored."""
    return 0 if found.decoding and found.decoding.mode == "score" else found.ready.config.decode.max_predict_length


def scorer(ready: Ready) -> Callable[[Sequence[str | None], Sequence[str]], Scores]:
    """What scores predictions against references, as the flags ask for."""
    output = ready.config.output
    correction = output.label_correction if ready.config.label.label_decoding == "generate" else CHOSEN
    options: dict[str, Any] = {"correction": correction, "max_distance": largest_distance(output)}
    return partial(score, postprocessor=ready.postprocessor, names=ready.task.metrics, **options)


def reference_perplexity(ready: Ready, split: EncodedSplit) -> Figure:
    """The perplexity of the references, on the first device."""
    model, tokenizer = ready.models[0]()
    device = ready.devices.device(0)
    with ready.devices.autocast():
        limits = BatchLimits.of(ready.config.decode)
        return perplexity(model.to(device), split, tokenizer.pad_token_id, limits, device)


def scores_of(found: Predicted) -> Scores:
    """The scores; nothing is told."""
    ready, decoding = found.ready, found.decoding
    postprocessor = ready.postprocessor
    scores = scorer(ready)(found.references, found.texts)
    if decoding and decoding.mode == "score" and not decoding.labels.separator:
        shares = (prediction.label_probabilities for prediction in found.predictions)
        scores = with_probabilities(scores, found.references, shares)
    if ready.config.length.doc_stride and isinstance(postprocessor, Answers) and postprocessor.unanswerable:
        unsure = (prediction.no_answer for prediction in found.predictions)
        scores = with_no_answer(scores, found.references, found.texts, unsure)
    if PERPLEXITY in named_metrics(ready.config.output.metrics):
        scores = with_figure(scores, PERPLEXITY, reference_perplexity(ready, found.split))
    return scores


def scored(found: Predicted, scores: Scores | None = None) -> tuple[Scores, dict[str, Any]]:
    """The scores, where they are not known yet, which are told, and the report of them."""
    ready, decoding = found.ready, found.decoding
    postprocessor, settings = ready.postprocessor, to_dict(ready.config)
    scores = scores_of(found) if scores is None else scores
    if decoding and decoding.mode == "score" and decoding.labels.separator:
        settings["label_thresholds"] = dict(zip(postprocessor.texts, decoding.thresholds, strict=True))
    elif decoding and decoding.mode == "score":
        settings["label_calibration"] = calibration_settings(decoding.calibration, postprocessor)
    tell(*report_text(scores, outputs_of(found.split, found.predictions, postprocessor)).splitlines())
    silent = silence_of(found)
    tell(*(["", *silent.lines()] if silent.to_dict() else []))
    return scores, {**report_dict(scores, settings), **silent.to_dict()}


def silence_of(found: Predicted) -> SilenceScores:
    """What label sets and abstention came to."""
    shares = LazySequence(len(found.split), lambda row: found.predictions[row].label_probabilities)
    silence = found.decoding.silence if found.decoding else NO_SILENCE
    if silence == NO_SILENCE:
        return SilenceScores(None, None)
    return silence_scores(silence, found.ready.postprocessor.texts, found.references, shares)
