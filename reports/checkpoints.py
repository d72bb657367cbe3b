"""All checkpoints of a run on the same rows: a table, curves over the steps, and how sure it is which is best.

What is shown stands under `checkpoints` in the JSON report of `inference.py -all_checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metrics.registry import METRICS
from reports import svg
from reports.charts import Curves, Line, line
from reports.page import data_text, section, table
from utils.tables import cells, counted, format_table

TITLE = "Checkpoints"
WIDTH = 80  # cells of a terminal

Found = Mapping[str, Any]


def checkpoint_lines(found: Found) -> list[str]:
    """The table of the metrics that a terminal has room for, and what is to be thought of the best."""
    names = _names(found)
    lines = format_table(*_cells(found, names))
    while len(names) > 1 and max(map(cells, lines)) > WIDTH:
        names.pop()
        lines = format_table(*_cells(found, names))
    left_out = len(_names(found)) - len(names)
    rest = [f"  and {counted(left_out, 'more metric')}, see -save_report"] if left_out else []
    return ["checkpoints, all on the same rows", *lines, *rest, "", *verdict(found)]


def verdict(found: Found) -> list[str]:
    """Which checkpoint is best, and how sure that is, in sentences."""
    metric, best = found["metric"], _of_step(found, found["best"])
    lines = [f"best by {metric}: step {best['step']:,} ({_text(metric, best)}), {best['path']}"]
    if "next" not in found:
        return lines
    second = _of_step(found, found["next"]["step"])
    counts = "{rows_that_differ:,} of {rows:,} rows".format(**found["next"])
    lines.append(f"next is step {second['step']:,} ({_text(metric, second)}), which predicts {counts} differently")
    if _value(metric, best) == _value(metric, second):
        lines.append("of equal figures the earliest counts as best")
    else:
        lines += _certainty(found)
    return [*lines, "the best was chosen on these rows, which flatters its figures: publish those of other rows"]


def _certainty(found: Found) -> list[str]:
    """Whether the best and the next checkpoint differ by more than chance, as far as that is known."""
    confidence, metric = found["next"].get("confidence"), found["metric"]
    if confidence is None:
        return ["-confidence 0.95 says whether that is more than chance"]
    difference = confidence.get("differences", {}).get(metric, {"difference": None, "interval": []})
    gains = [difference["difference"], *difference["interval"]]  # the figure of the next less that of the best
    if None in gains:
        return [f"-confidence: {metric} has no interval"]
    sign = -1 if found["higher_is_better"] else 1
    low, high = sorted(sign * end for end in gains[1:])
    gain, *ends = map(METRICS[metric].text, (sign * gains[0], low, high))
    return [
        f"the best gains {gain}, at {confidence['level'] * 100:g} % from {ends[0]} to {ends[1]} (paired bootstrap): "
        + ("more than chance" if low > 0 else "these rows do not tell the two apart")
    ]


def checkpoint_charts(report: Mapping[str, Any]) -> list[Curves]:
    """Each metric over the steps, the one that decides first, with its interval and the chosen checkpoint."""
    found = report.get("checkpoints")
    return [_chart(found, name) for name in _names(found)] if found else []


def checkpoint_section(report: Mapping[str, Any]) -> str:
    """The part of the page; empty where the report is of one model."""
    found = report.get("checkpoints")
    if not found:
        return ""
    headers, rows = _cells(found, _names(found))
    drawn = "".join(map(svg.curves, checkpoint_charts(report)))
    told = "".join(f'<p class="quiet">{data_text(text, 2000)}</p>\n' for text in verdict(found))
    return section(TITLE, told, table(headers, rows, "numbers"), f'<div class="charts">\n{drawn}</div>\n')


def _names(found: Found) -> list[str]:
    """The metrics, the one that decides first."""
    return list(dict.fromkeys([found["metric"], *found["scored"][0]["metrics"]]))


def _of_step(found: Found, step: int) -> Mapping[str, Any]:
    return next(one for one in found["scored"] if one["step"] == step)


def _value(metric: str, one: Mapping[str, Any]) -> float | None:
    value: float | None = one["metrics"].get(metric)
    return value


def _text(metric: str, one: Mapping[str, Any]) -> str:
    value = _value(metric, one)
    return "undefined" if value is None else METRICS[metric].text(value)


def _interval(metric: str, one: Mapping[str, Any]) -> list[float | None]:
    ends: list[float | None] = one.get("confidence", {}).get("intervals", {}).get(metric, [])
    return ends


def _cells(found: Found, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of a table, the interval of the first metric beside it."""
    first, *others = names
    bounded = bool(_interval(first, found["scored"][0]))
    rows = []
    for one in found["scored"]:
        ends = ["undefined" if end is None else METRICS[first].text(end) for end in _interval(first, one)]
        mark = "best" if one["step"] == found["best"] else ""
        rows.append([mark, f"{one['step']:,}", _text(first, one), *ends, *(_text(name, one) for name in others)])
    return ["", "step", first, *(["from", "to"] if bounded else []), *others], rows


def _chart(found: Found, metric: str) -> Curves:
    best = _of_step(found, found["best"])
    lines: list[Line] = [line(metric, ((one["step"], _value(metric, one)) for one in found["scored"]), dots=True)]
    bounded = [(one["step"], _interval(metric, one)) for one in found["scored"] if _interval(metric, one)]
    for place, end in enumerate(("from", "to")):
        lines += [line(end, ((step, ends[place]) for step, ends in bounded))] if bounded else []
    lines.append(line(f"chosen, step {best['step']:,}:", [(best["step"], _value(metric, best))]))
    return Curves(
        f"checkpoints_{metric}", f"{metric} over the checkpoints", "optimizer step", tuple(lines), linear=True
    )
