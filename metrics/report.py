"""Scores as plain text for the terminal and as a JSON-ready report: no escape codes, Hangul counted two cells wide."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from metrics.calibration import LabelCalibration
from metrics.labels import INVALID
from metrics.registry import METRICS, POINTS
from metrics.score import Scores
from postprocessors.labels import LabelMap

LIST_LIMIT = 20  # lines of a list of unique texts
TEXT_WIDTH = 60  # cells of a text in a list
MATRIX_LIMIT = 20  # labels of a printed confusion matrix


def report_text(scores: Scores) -> str:
    """The whole result as aligned plain text, sections parted by empty lines, with a newline at the end."""
    sections = [_counts(scores), _predictions(scores)]
    if scores.labels:
        sections += [_corrections(scores), _corrected(scores), _per_class(scores), _confusion(scores)]
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


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Lines of a table: first column to the left, the others to the right, padded by terminal cells."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(_cells(line[column]) for line in lines) for column in range(len(headers))]
    return [
        indent + "  ".join(_pad(line[column], width, left=column == 0) for column, width in enumerate(widths))
        for line in lines
    ]


def visible(text: str, width: int = TEXT_WIDTH) -> str:
    r"""`text` on one line, safe for a terminal: control characters as `\n`, `\x1b`; cut with `…` at `width` cells."""
    if not text:
        return "(empty)"
    shown: list[str] = []
    room = width
    for character in text[: width + 1]:
        piece = character if character.isprintable() else ascii(character)[1:-1]
        room -= _cells(piece)
        shown.append(piece)
        if room < 0:
            break
    if room >= 0 and len(text) <= width:
        return "".join(shown)
    while shown and sum(map(_cells, shown)) > width - 1:
        shown.pop()
    return "".join(shown) + "…"


def _counts(scores: Scores) -> list[str]:
    lines = [f"references:  {scores.scored_rows:,}", f"predictions: {scores.rows:,}"]
    missing = scores.rows - scores.scored_rows
    if missing:
        lines.append(f"{_number(missing, 'row')} without a reference: left out of the metrics")
    return lines


def _predictions(scores: Scores) -> list[str]:
    """Unique predictions with counts; of a long list of free texts only those that occur more than once."""
    counts = list(scores.prediction_counts.items())
    what = "predicted labels, as generated" if scores.labels else "predicted texts"
    title = f"{what}: {scores.unique_predictions:,} unique"
    listed = counts
    if not scores.labels and scores.unique_predictions > LIST_LIMIT:
        listed = [(text, count) for text, count in counts if count > 1]
    rows = [(visible(text), f"{count:,}") for text, count in listed[:LIST_LIMIT]]
    return _listing(title, ("prediction", "count"), rows, scores.unique_predictions)


def _corrections(scores: Scores) -> list[str]:
    limit = "" if scores.max_distance is None else f", at most {_number(scores.max_distance, 'edit')}"
    rule = {"nearest": f"nearest label by edit distance{limit}", "none": "none"}[scores.correction]
    lines = [f"correction: {rule}", f"invalid outputs (no label text): {scores.invalid_outputs:,} of {scores.rows:,}"]
    rows = [
        (
            visible(item["output"]),
            visible(item["label"]) if item["label"] is not None else INVALID,
            f"{item['count']:,}",
        )
        for item in scores.corrections[:LIST_LIMIT]
    ]
    return lines + _listing("", ("output", "label", "count"), rows, len(scores.corrections))[1:]


def _corrected(scores: Scores) -> list[str]:
    rows = [
        (INVALID if label is None else visible(label), f"{count:,}") for label, count in scores.corrected_counts.items()
    ]
    return _listing("labels after correction", ("label", "count"), rows[:LIST_LIMIT], len(rows))


def _per_class(scores: Scores) -> list[str]:
    """Precision, recall, F1 and support of every label, macro and micro means below."""
    if not scores.per_class:
        return []
    rows = [
        (visible(row["label"]), *(_fraction(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}")
        for row in [*scores.per_class, *scores.averages]
    ]
    lines = format_table(("label", "precision", "recall", "f1", "support"), rows)
    rule = "  " + "-" * (max(map(_cells, lines)) - 2)
    means = len(scores.averages)
    return ["per class, after correction", lines[0], rule, *lines[1:-means], rule, *lines[-means:]]


def _confusion(scores: Scores) -> list[str]:
    if scores.confusion_matrix is None:
        return []
    title = "confusion matrix, after correction (rows: reference, columns: prediction)"
    if len(scores.labels) > MATRIX_LIMIT:
        return [f"{title}: {len(scores.labels)} labels are too many to print; see -save_report"]
    headers = ["", *(visible(label, 20) for label in scores.confusion_matrix["columns"])]
    rows = [
        [visible(label, 20), *(f"{count:,}" for count in counts)]
        for label, counts in zip(scores.confusion_matrix["labels"], scores.confusion_matrix["rows"], strict=True)
    ]
    return [title, *format_table(headers, rows)]


def _metrics(scores: Scores) -> list[str]:
    if not scores.metrics:
        return ["metrics: none, no row has a reference"] if not scores.scored_rows else []
    lines, width, told = [], max(18, *map(len, scores.metrics)), set()
    for name, value in scores.metrics.items():
        metric = METRICS[name]
        how = scores.details.get(metric.how or name, metric.note)
        notes = [how] if how not in told else []
        told.add(how)
        if not metric.higher_is_better:
            notes.append("the smaller the better")
        note = "; ".join(filter(None, notes))
        lines.append(f"  {name:<{width}}  {metric.text(value):>7}" + (f"   {note}" if note else ""))
    points = [name for name in scores.metrics if METRICS[name].scale == POINTS]
    units = f"fractions, {' and '.join(points)} in points of 100" if points else "fractions"
    return [f"metrics ({units})", *lines]


def _listing(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> list[str]:
    """A titled table, with a last line for those of `total` that are not in it."""
    more = total - len(rows)
    rest = [f"  and {more:,} more"] if more else []
    return [title, *(format_table(headers, rows) if rows else []), *rest]


def _number(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - _cells(text))
    return text + space if left else space + text


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


def calibration_settings(calibration: LabelCalibration, labels: LabelMap) -> dict[str, Any]:
    """How label probabilities came about, for a report: the temperature, and the prior of every label or None."""
    prior = (
        dict(zip(labels.texts, map(math.exp, calibration.log_prior), strict=True)) if calibration.log_prior else None
    )
    return {"temperature": calibration.temperature, "prior": prior}
