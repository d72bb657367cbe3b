"""Metrics of JSON: how many outputs can be read, are right as a whole, and field by field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from metrics.labels import CountedRows
from metrics.registry import Figure, Metric, register
from postprocessors.structured import JsonValue


def _valid(rows: CountedRows, postprocessor: JsonValue) -> Figure:
    found = zip(rows.predictions, rows.counts, strict=True)
    return Figure(sum(n for text, n in found if postprocessor.value(text) is not None) / sum(rows.counts))


def _equal(rows: CountedRows, postprocessor: JsonValue) -> Figure:
    pairs = zip(rows.references, rows.corrected, rows.counts, strict=True)
    right = sum(n for wanted, text, n in pairs if text is not None and _same(wanted, text, postprocessor))
    return Figure(right / sum(rows.counts))


def _same(wanted: str, text: str, postprocessor: JsonValue) -> bool:
    return _plain(_reference(wanted, postprocessor)) == _plain(postprocessor.value(text))


def _reference(text: str, postprocessor: JsonValue) -> Any:
    value = postprocessor.value(text)
    if value is None:
        raise ValueError(f"reference {text!r} is no JSON object or list")
    return value


def _plain(value: Any) -> str:
    """One text for equal values, whatever the order of keys; 1 and true are two values."""
    return json.dumps(value, sort_keys=True)


def _field_f1(rows: CountedRows, postprocessor: JsonValue) -> Figure:
    right = total = 0
    for wanted, text, count in zip(rows.references, rows.corrected, rows.counts, strict=True):
        reference = Counter(_fields(_reference(wanted, postprocessor)))
        prediction = Counter(_fields(postprocessor.value(text))) if text is not None else Counter()
        right += count * (reference & prediction).total()
        total += count * (reference.total() + prediction.total())
    return Figure(2 * right / total if total else float("nan"), "" if total else "no reference has a field")


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every plain value in it; items of a list have one path, whatever their order."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _fields(item, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list):
        for item in value:
            yield from _fields(item, f"{path}[]")
    else:
        yield path, _plain(value)


register(
    Metric("json_valid", "json", "share of outputs that are a JSON object or list", _valid, note="raw, as generated"),
    Metric("json_equal", "json", "share of rows whose value is that of the reference, after correction", _equal),
    Metric(
        "json_field_f1",
        "json",
        "F1 over the fields of all rows, a path and a plain value each, after correction",
        _field_f1,
    ),
)
