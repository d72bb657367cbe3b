"""Scores as plain text for the terminal and as a JSON-ready report: no escape codes, Hangul counted two cells wide."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics.labels import INVALID, confused_pairs
from metrics.registry import METRICS, POINTS
from metrics.score import CHOSEN, Scores
from metrics.uncertainty.calibration import LabelCalibration
from postprocessors.base import FREE_TEXT, FreeText, Postprocessor
from utils.tables import cells, counted, format_table, visible

LIST_LIMIT = 20  # lines of a list of unique texts
CLASS_LIMIT = 100  # labels of a printed table by class
MATRIX_LIMIT = 20  # labels of a printed confusion matrix
EXAMPLES = 5  # rows shown of free text


@dataclass(frozen=True)
class Outputs:
    """What a look at every row shows that scores do not: (source, reference or None, prediction) of a few rows, wrong
    ones first; how many are `wrong`; and how many outputs were `cut` at the length limit, None where labels bound them.
    """

    examples: tuple[tuple[str | None, str | None, str], ...] = ()
    wrong: int = 0
    cut: int | None = None

    @classmethod
    def of(cls, rows: Iterable[tuple[str | None, str, bool]], source_of: Callable[[int], str | None]) -> Outputs:
        """Of (reference, prediction, cut) of every row; sources are asked for by row number, of the examples alone,
        and are None where they are not known."""
        wrong: list[tuple[int, str | None, str]] = []
        others: list[tuple[int, str | None, str]] = []
        wrong_count = cut_count = 0
        for number, (reference, prediction, cut) in enumerate(rows):
            is_wrong = reference is not None and reference != prediction
            wrong_count += is_wrong
            cut_count += cut
            kept = wrong if is_wrong else others
            if len(kept) < EXAMPLES:
                kept.append((number, reference, prediction))
        chosen = [*wrong, *others][:EXAMPLES]
        examples = tuple((source_of(number), reference, prediction) for number, reference, prediction in chosen)
        return cls(examples, wrong_count, cut_count)


def report_text(scores: Scores, outputs: Outputs | None = None) -> str:
    """The whole result as aligned plain text, sections parted by empty lines, with a newline at the end."""
    sections = [_counts(scores, outputs), _predictions(scores)]
    if not isinstance(scores.postprocessor, FreeText):
        if scores.correction != CHOSEN and scores.postprocessor.correction != FREE_TEXT.correction:
            sections += [_corrections(scores), _corrected(scores)]
        sections += [_per_class(scores), _confusion(scores)]
    if outputs and not scores.postprocessor.texts:
        sections.append(_examples(outputs, scores.scored_rows))
    sections.append(_metrics(scores))
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def report_dict(scores: Scores, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The report of `-save_report`, ready for `json.dump`.

    Keys `rows`, `scored_rows` (rows with a reference), `metrics`, `invalid_outputs`, `per_class`, `confusion_matrix`
    (None without labels or references) and `settings`: those given, and how each metric was computed
    (`metric_details`). What JSON cannot hold becomes text; NaN and infinity become None.
    """
    return {
        "rows": scores.rows,
        "scored_rows": scores.scored_rows,
        "metrics": _json_value(scores.metrics),
        "invalid_outputs": scores.invalid_outputs,
        "per_class": _json_value(scores.per_class),
        "confusion_matrix": _json_value(scores.confusion_matrix),
        "settings": {**_json_value(settings), "metric_details": dict(scores.details)},
    }


def _counts(scores: Scores, outputs: Outputs | None) -> list[str]:
    lines = [f"references:  {scores.scored_rows:,}", f"predictions: {scores.rows:,}"]
    missing = scores.rows - scores.scored_rows
    if missing:
        lines.append(f"{counted(missing, 'row')} without a reference: left out of the metrics")
    if outputs and outputs.cut:
        lines.append(f"{counted(outputs.cut, 'output')} of {scores.rows:,} reached the length limit and were cut")
    return lines


def _examples(outputs: Outputs, scored_rows: int) -> list[str]:
    """A few rows, three lines each."""
    shown = len(outputs.examples)
    title = f"examples: {min(shown, outputs.wrong)} of {counted(outputs.wrong, 'row')} that differ from the reference"
    if not outputs.wrong:
        title = "examples: no row differs from its reference" if scored_rows else "examples"
    lines = [title]
    for source, reference, prediction in outputs.examples:
        lines += [""] if source is None else ["", f"  source      {visible(source)}"]
        lines += [] if reference is None else [f"  reference   {visible(reference)}"]
        lines += [f"  prediction  {visible(prediction)}"]
    return lines if outputs.examples else []


def _predictions(scores: Scores) -> list[str]:
    """Unique predictions with counts; of a long list of free texts only those that occur more than once."""
    counts = list(scores.prediction_counts.items())
    kind = scores.postprocessor.kind
    words = "" if isinstance(scores.postprocessor, FreeText) else _words(scores, ", as generated")
    title = f"predicted {kind}{words}: {scores.unique_predictions:,} unique"
    listed = counts
    if not scores.postprocessor.texts and scores.unique_predictions > LIST_LIMIT:
        listed = [(text, count) for text, count in counts if count > 1]
    rows = [(visible(text), f"{count:,}") for text, count in listed[:LIST_LIMIT]]
    return _listing(title, ("prediction", "count"), rows, scores.unique_predictions)


def _corrections(scores: Scores) -> list[str]:
    limit = "" if scores.max_distance is None else f", at most {counted(scores.max_distance, 'edit')}"
    name = scores.postprocessor.name
    rule = {"nearest": f"{scores.postprocessor.correction}{limit}", "none": "none"}[scores.correction]
    lines = [f"correction: {rule}", f"invalid outputs (no {name} text): {scores.invalid_outputs:,} of {scores.rows:,}"]
    rows = [
        (
            visible(item["output"]),
            visible(item["label"]) if item["label"] is not None else INVALID,
            f"{item['count']:,}",
        )
        for item in scores.corrections[:LIST_LIMIT]
    ]
    return lines + _listing("", ("output", name, "count"), rows, len(scores.corrections))[1:]


def _corrected(scores: Scores) -> list[str]:
    rows = [
        (INVALID if label is None else visible(label), f"{count:,}") for label, count in scores.corrected_counts.items()
    ]
    kind, name = scores.postprocessor.kind, scores.postprocessor.name
    return _listing(f"{kind} after correction", (name, "count"), rows[:LIST_LIMIT], len(rows))


def _per_class(scores: Scores) -> list[str]:
    """Precision, recall, F1 and support of every label, macro and micro means below; of very many, those that occur."""
    if not scores.per_class:
        return []
    classes = scores.per_class
    if len(classes) > CLASS_LIMIT:
        occurring = [row for row in classes if row["f1"] is not None]
        classes = sorted(occurring, key=lambda row: -int(row["support"]))[:CLASS_LIMIT]
    rows = [
        (visible(row["label"]), *(_fraction(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}")
        for row in [*classes, *scores.averages]
    ]
    lines = format_table(("label", "precision", "recall", "f1", "support"), rows)
    rule = "  " + "-" * (max(map(cells, lines)) - 2)
    means, left_out = len(scores.averages), len(scores.per_class) - len(classes)
    rest = [f"  and {left_out:,} more, see -save_report"] if left_out else []
    return [f"per class{_words(scores)}", lines[0], rule, *lines[1:-means], *rest, rule, *lines[-means:]]


def _confusion(scores: Scores) -> list[str]:
    """The matrix; of many labels the pairs that were taken for each other."""
    if scores.confusion_matrix is None:
        return []
    title = f"confusion matrix{_words(scores)} (rows: reference, columns: prediction)"
    if len(scores.postprocessor.texts) > MATRIX_LIMIT:
        pairs = [pair for pair in confused_pairs(scores.confusion_matrix) if pair["reference"] != pair["prediction"]]
        rows = [
            [visible(pair["reference"], 30), visible(pair["prediction"], 30), f"{pair['count']:,}"]
            for pair in pairs[:LIST_LIMIT]
        ]
        title = f"labels taken for each other{_words(scores)}"
        return _listing(title, ("reference", "prediction", "count"), rows, len(pairs), left=2) if rows else []
    headers = ["", *(visible(label, 20) for label in scores.confusion_matrix["columns"])]
    rows = [
        [visible(label, 20), *(f"{count:,}" for count in counts)]
        for label, counts in zip(scores.confusion_matrix["labels"], scores.confusion_matrix["rows"], strict=True)
    ]
    return [title, *format_table(headers, rows)]


def _words(scores: Scores, of_generation: str = ", after correction") -> str:
    """`of_generation`, but nothing where the outputs were chosen among the labels."""
    return "" if scores.correction == CHOSEN else of_generation


def _metrics(scores: Scores) -> list[str]:
    if not scores.metrics:
        return ["metrics: none, no row has a reference"] if not scores.scored_rows else []
    lines, width, told = [], max(18, *map(len, scores.metrics)), set()
    for name, value in scores.metrics.items():
        metric = METRICS[name]
        if scores.correction == CHOSEN and metric.corrected:  # the same as without correction
            continue
        how = scores.details.get(metric.how or name, _words(scores, metric.note))
        notes = [how] if how not in told else []
        told.add(how)
        if not metric.higher_is_better:
            notes.append("the smaller the better")
        note = "; ".join(filter(None, notes))
        lines.append(f"  {name:<{width}}  {metric.text(value):>7}" + (f"   {note}" if note else ""))
    points = [name for name in scores.metrics if METRICS[name].scale == POINTS]
    units = f"fractions, {_listed(points)} in points of 100" if points else "fractions"
    return [f"metrics ({'points of 100' if len(points) == len(scores.metrics) else units})", *lines]


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _listing(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], total: int, left: int = 1) -> list[str]:
    """A titled table, with a last line for those of `total` that are not in it."""
    more = total - len(rows)
    rest = [f"  and {more:,} more"] if more else []
    return [title, *(format_table(headers, rows, left=left) if rows else []), *rest]


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _json_value(value: Any) -> Any:
    """`value` in primitives; see `report_dict`."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _json_value({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(_json_value, value), key=str)
    return str(value)


def calibration_settings(calibration: LabelCalibration, postprocessor: Postprocessor) -> dict[str, Any]:
    """How label probabilities came about, for a report: the temperature, and the prior of every label or None."""
    shares = map(math.exp, calibration.log_prior)
    prior = dict(zip(postprocessor.texts, shares, strict=True)) if calibration.log_prior else None
    return {"temperature": calibration.temperature, "prior": prior}
