"""Numbers from references and predictions: pure functions over the raw texts, all offline. No torch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from config.user_code import errors_of_user_code
from metrics.labels import CountedRows, label_tables
from metrics.registry import METRICS, PROBABILITIES, TEXTS, Figure, default_metrics, metric_names, number_of, takes_of
from metrics.text import text_metrics
from postprocessors.base import FREE_TEXT, Postprocessor
from postprocessors.labels import LabelMap
from utils.errors import UserError

CORRECTIONS = ("nearest", "none")
CHOSEN = "chosen"  # a "correction" that is none: outputs were chosen among the labels
TEXTS_COUNTED = 1000  # free texts in `Scores.prediction_counts`


@dataclass(frozen=True)
class Scores:
    """The result of `score`: plain numbers, texts, lists and dicts.

    `rows` counts predictions and `scored_rows` those with a reference; the metrics cover the latter. `metrics` is
    empty when no row has a reference; a figure that is undefined for these rows is NaN. `details` says how a metric was
    computed (tokenizer, signature, what could not be read). `unique_predictions` is the number of different ones, and
    `prediction_counts` how often each occurs, most frequent first; of free texts only the `TEXTS_COUNTED`
    most frequent.

    With another `postprocessor` than free text: `invalid_outputs` counts the predictions of all rows that have no
    value; `corrections` holds every such text once, most frequent first, as {output, label or None, count};
    `corrected_counts` counts the texts after correction (None: still no value). Of labels alone: `per_class` holds
    {label, precision, recall, f1, support} in declared order, `averages` the same for "macro" and "micro";
    `confusion_matrix` as in `metrics.labels`. When a row may have several labels, `corrected_counts` and `per_class`
    count each of them, and there is no confusion matrix. `reliability` is that of label probabilities
    (`metrics.uncertainty.calibration`).
    """

    rows: int
    scored_rows: int
    metrics: dict[str, float]
    unique_predictions: int
    prediction_counts: dict[str, int]
    details: dict[str, str] = field(default_factory=dict)
    postprocessor: Postprocessor = FREE_TEXT
    correction: str = "none"
    max_distance: int | None = None
    invalid_outputs: int = 0
    corrections: list[dict[str, Any]] = field(default_factory=list)
    corrected_counts: dict[str | None, int] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    averages: list[dict[str, Any]] = field(default_factory=list)
    confusion_matrix: dict[str, Any] | None = None
    reliability: tuple[tuple[float, float, int], ...] = ()


def score(
    references: Sequence[str | None],
    predictions: Sequence[str],
    postprocessor: Postprocessor = FREE_TEXT,
    correction: str = "nearest",
    max_distance: int | None = None,
    names: Sequence[str] | None = None,
) -> Scores:
    """Score predictions against raw references; a row whose reference is None is left out of the metrics.

    Rows are gone through one after the other, so that sequences may read their items from a disk. Of free texts 9 bytes
    a row are kept, of others the different pairs of reference and prediction.

    Texts are compared as they stand (case and blanks count). `names` default to the metrics of the postprocessor's
    kind, and to the text metrics where it has none; their direction and scale stand in `metrics.registry`. Of labels:

    - `accuracy`: share of raw predictions equal to their reference.
    - `accuracy_corrected`: the same after the correction of outputs that are no label text. `nearest` takes the label
      at the smallest edit distance, or none beyond `max_distance`; correction `none` takes no label at all.
    - `macro_f1`, `micro_f1`: on the *corrected* predictions. An output that is still no label is a miss of its
      reference's class (lower recall) and a false alarm of no class. Macro: mean over the labels that occur in the
      references or the corrected predictions. Micro: over all rows; equal to `accuracy_corrected` when nothing is
      invalid any more.
    - Where a row may have several labels, `accuracy_corrected` is the share of rows with exactly those of the
      reference; `macro_f1` and `micro_f1` are over the single decisions, a row and a label each; an output that is
      still no label is a row without labels.

    Raises `ValueError` on an unknown name, a metric of another kind of output, a reference that is no label text,
    or references and predictions of different number.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references, but {len(predictions)} predictions")
    wanted = tuple(names) if names is not None else default_metrics(postprocessor.kind) or default_metrics(TEXTS)
    known = metric_names(*takes_of(postprocessor.kind))
    for name in wanted:
        if name not in known:
            needs = f"{name!r} needs {METRICS[name].takes}" if name in METRICS else f"{name!r} is unknown"
            raise ValueError(f"metric {needs}; known here: {', '.join(known)}")
    figures, details = text_metrics(references, predictions, wanted, postprocessor)
    if postprocessor.kind != TEXTS:
        return _with_values(references, predictions, postprocessor, correction, max_distance, wanted, figures, details)
    unique, counts = _most_frequent(predictions)
    return Scores(
        rows=len(predictions),
        scored_rows=sum(reference is not None for reference in references),
        metrics=figures,
        unique_predictions=unique,
        prediction_counts=counts,
        details=details,
    )


def _with_values(
    references: Sequence[str | None],
    predictions: Sequence[str],
    postprocessor: Postprocessor,
    correction: str,
    max_distance: int | None,
    wanted: Sequence[str],
    text_figures: Mapping[str, float],
    details: dict[str, str],
) -> Scores:
    """`score` of other outputs than free text, whose text metrics are known."""
    pairs = Counter(zip(references, predictions, strict=True))
    counted: Counter[str] = Counter()
    for (_, prediction), count in pairs.items():
        counted[prediction] += count
    label_of = dict(zip(counted, correct(list(counted), postprocessor, correction, max_distance), strict=True))
    rows = CountedRows.of(pairs, label_of)
    found = dict(text_figures)
    tables: dict[str, Any] = {}
    if rows.counts:
        taken: tuple[Any, ...] = (rows, postprocessor)
        if isinstance(postprocessor, LabelMap):
            taken = (of_labels,) = (label_tables(rows, postprocessor),)
            tables = {name: getattr(of_labels, name) for name in ("per_class", "averages", "confusion_matrix")}
        for metric in (METRICS[name] for name in wanted):
            if metric.takes == PROBABILITIES:
                found[metric.name], details[metric.name] = math.nan, "needs -label_decoding score"
            if metric.takes == postprocessor.kind and metric.compute:
                with errors_of_user_code(f"metric {metric.name}"):
                    result: Any = metric.compute(*taken)
                if not (isinstance(result, tuple) and len(result) == 2):
                    raise UserError(f"metric {metric.name}: gives {result!r:.100}, and not a figure and words about it")
                found[metric.name], how = number_of(metric.name, result[0]), result[1]
                details |= {metric.how or metric.name: how} if how else {}
    return Scores(
        rows=len(predictions),
        scored_rows=sum(rows.counts),
        metrics={name: found[name] for name in wanted if name in found},
        unique_predictions=len(counted),
        prediction_counts=dict(counted.most_common()),
        details=details,
        postprocessor=postprocessor,
        correction=correction,
        max_distance=max_distance,
        **_correction_counts(counted, label_of, postprocessor, chosen=correction == CHOSEN),
        **tables,
    )


def with_figure(scores: Scores, name: str, figure: Figure) -> Scores:
    """`scores` with one more metric."""
    metrics, details = {**scores.metrics, name: figure.value}, {**scores.details, name: figure.detail}
    return replace(scores, metrics=metrics, details=details)


def correct(
    predictions: Sequence[str],
    postprocessor: Postprocessor,
    correction: str = "nearest",
    max_distance: int | None = None,
) -> list[str | None]:
    """Every prediction as it counts (None: no value), by correction `nearest`, `none` or `CHOSEN`; see `score`."""
    if correction not in (*CORRECTIONS, CHOSEN):
        raise ValueError(f"correction {correction!r} is unknown; known: {', '.join(CORRECTIONS)}")
    if correction == "nearest":
        return postprocessor.correct(predictions, max_distance)
    valid = {text for text in set(predictions) if postprocessor.value(text) is not None}
    return [text if text in valid else None for text in predictions]


def _most_frequent(texts: Sequence[str]) -> tuple[int, dict[str, int]]:
    """How many different texts there are, and the counts of the most frequent ones.

    By digests of 8 bytes: among a million different texts two share one with a probability of 3e-8.
    """
    import numpy as np

    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    numbers = np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, count=len(texts))
    _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))[:TEXTS_COUNTED]
    return len(first), {texts[int(first[place])]: int(counts[place]) for place in order}


def _correction_counts(
    counted: Mapping[str, int], label_of: Mapping[str, str | None], postprocessor: Postprocessor, chosen: bool
) -> dict[str, Any]:
    """The fields `invalid_outputs`, `corrections` and `corrected_counts` of `Scores`, from counts of predictions.

    What was `chosen` among the labels is never invalid, though there may be none of them.
    """
    invalid_texts = () if chosen else [text for text in counted if postprocessor.value(text) is None]
    changed = Counter({text: counted[text] for text in invalid_texts})
    counts: Counter[str | None] = Counter()
    for text, count in counted.items():
        label = label_of[text]
        parts = postprocessor.value(label) if label is not None and postprocessor.texts else (label,)
        counts.update(dict.fromkeys(parts or (), count))
    invalid = counts.pop(None, 0)
    known = postprocessor.texts or [text for text, _ in counts.most_common()]
    corrected_counts: dict[str | None, int] = {text: counts[text] for text in known}
    if invalid:
        corrected_counts[None] = invalid
    return {
        "invalid_outputs": sum(changed.values()),
        "corrections": [
            {"output": text, "label": label_of[text], "count": count} for text, count in changed.most_common()
        ],
        "corrected_counts": corrected_counts,
    }
